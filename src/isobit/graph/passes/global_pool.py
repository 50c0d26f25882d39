"""Global average pooling in one form: every way to write it becomes one op, which engines run on integers."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx

from isobit.graph.deployed import GlobalAveragePool
from isobit.graph.passes.protocol import PassReport
from isobit.graph.tensors import tensors_of


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class UnifyGlobalPool:
    """AdaptiveAvgPool2d(1), x.mean((2, 3)) and avg_pool2d over the whole map become `GlobalAveragePool` (+ flatten)."""

    name: str = "unify_global_pool"
    requires: str = "a captured model"
    ensures: str = "the output is unchanged, to the rounding of a float32 mean"

    def apply(self, model: fx.GraphModule) -> PassReport:
        """Rewrite in place."""
        tensors = tensors_of(model)
        changed: list[str] = []
        for node in list(model.graph.nodes):
            if tensors.kinds[node] not in ("global_avg_pool", "avg_pool"):
                continue
            if node.op == "call_module" and isinstance(model.get_submodule(str(node.target)), GlobalAveragePool):
                continue
            (source,) = tensors.inputs(node)
            before, after = source.meta.get("val"), node.meta.get("val")
            if not _pools_all(before, after, tensors.kinds[node]):
                continue
            assert isinstance(after, Tensor)
            name = f"global_pool_{len(changed)}"
            model.add_module(name, GlobalAveragePool())
            with model.graph.inserting_before(node):
                pooled = model.graph.call_module(name, (source,))
                pooled.meta = dict(node.meta)
                if after.dim() == 2:
                    pooled.meta["val"] = after[..., None, None]
                    flat = model.graph.call_function(torch.ops.aten.flatten.using_ints, (pooled, 1))
                    flat.meta = dict(node.meta)
                else:
                    flat = pooled
            node.replace_all_uses_with(flat)
            model.graph.erase_node(node)
            changed.append(node.name)
        model.graph.lint()
        model.recompile()
        return PassReport(changed=tuple(changed))


def _pools_all(before: object, after: object, kind: str) -> bool:
    """Whether every output value is the mean of a whole map."""
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.dim() != 4:
        return False
    whole = tuple(after.shape[2:]) in ((1, 1), ())
    return whole and (kind == "global_avg_pool" or tuple(before.shape[2:]) != (1, 1))

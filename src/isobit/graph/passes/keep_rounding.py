"""The rounding in front of an add, kept: engines that add a residual inside of a convolution drop it."""

from dataclasses import dataclass
from typing import final

from torch import Tensor, fx, nn

from isobit.graph.passes.protocol import PassReport
from isobit.graph.tensors import Tensors, tensors_of

_NAME = "kept_rounding"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class KeepRounding:
    """A convolution whose result only an add reads gets a max pool over a window of one behind it.

    It changes nothing and moves integers, and no engine adds through it: the convolution is rounded to a grid of its
    own everywhere. Without it OpenVINO and TensorRT add to the accumulator.
    """

    name: str = "keep_rounding"
    requires: str = "a captured model"
    ensures: str = "the output is unchanged"

    def apply(self, model: fx.GraphModule) -> PassReport:
        """Insert in place."""
        tensors = tensors_of(model)
        changed: list[str] = []
        for node in [n for n in model.graph.nodes if tensors.kinds[n] == "add"]:
            for operand in tensors.inputs(node):
                source = tensors.source(operand)
                if not _fuses(tensors, source, node):
                    continue
                name = f"{_NAME}_{len(changed)}"
                model.add_module(name, nn.MaxPool2d(1))
                with model.graph.inserting_after(operand):
                    kept = model.graph.call_module(name, (operand,))
                kept.meta = {key: operand.meta[key] for key in ("val", "nn_module_stack") if key in operand.meta}
                node.replace_input_with(operand, kept)
                changed.append(source.name)
        model.graph.lint()
        model.recompile()
        return PassReport(changed=tuple(changed))


def _fuses(tensors: Tensors, source: fx.Node, add: fx.Node) -> bool:
    """Whether an engine may compute a convolution and an add as one."""
    value = source.meta.get("val")
    flat = not isinstance(value, Tensor) or value.dim() != 4
    head = tensors.source(tensors.inputs(source)[0]) if tensors.kinds[source] == "batch_norm" else source
    return not flat and tensors.kinds[head] in ("conv", "conv_transpose") and tensors.only_reader(source) is add

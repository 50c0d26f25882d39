"""Batch-norm folding by merging: one convolution with a bias does what conv and BN did (Jacob et al., eq. 14)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx, nn

from isobit.core.errors import IsobitError
from isobit.graph.names import display_name
from isobit.graph.passes.protocol import PassReport
from isobit.graph.tensors import tensors_of

TOLERANCE = 1e-5
"""Largest relative difference that rounding the folded weights to float32 may cause, per layer."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class FoldBatchNorm:
    """Merge every batch norm into the convolution or linear layer in front of it, from its running statistics.

    W' = W · γ / sqrt(σ² + ε) per output channel, b' = β + (b - μ) γ / sqrt(σ² + ε).
    """

    name: str = "fold_bn"
    requires: str = "a captured model"
    ensures: str = "the output in eval mode is unchanged, to the rounding of float32"

    def apply(self, model: fx.GraphModule) -> PassReport:
        """Fold in place. A batch norm whose input has another reader, or no weights in front, stays and is named."""
        tensors = tensors_of(model)
        calls = calls_of(model)
        done, left, worst = [], [], 0.0
        for node in list(model.graph.nodes):
            if tensors.kinds[node] != "batch_norm":
                continue
            if node.op != "call_module":
                left.append(f"{display_name(node)}: a function that always uses its own statistics, not a module")
                continue
            (source,) = tensors.inputs(node)
            if why := obstacle(model, source, node, calls):
                left.append(f"{node.target}: {why}")
                continue
            layer, norm = model.get_submodule(str(source.target)), model.get_submodule(str(node.target))
            assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
            worst = max(worst, fold_batch_norm(layer, norm, name=str(source.target)))
            node.replace_all_uses_with(source)
            model.graph.erase_node(node)
            model.set_submodule(str(node.target), nn.Identity())
            done.append(str(node.target))
        model.graph.lint()
        model.recompile()
        return PassReport(changed=tuple(done), left=tuple(left), largest_error=worst)


@torch.no_grad()
def fold_batch_norm(layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm, *, name: str = "conv") -> float:
    """Merge `norm` into `layer` in place, in float64, and prove it: returns the largest relative error.

    The proof compares layer-then-norm with the merged layer on random inputs of the layer's own kernel size, in
    float64; raises IsobitError beyond `TOLERANCE`.
    """
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and not isinstance(bias, nn.Module)
    assert norm.running_mean is not None and norm.running_var is not None
    axis = 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0
    inverse = torch.rsqrt(norm.running_var.double() + norm.eps)
    factor = inverse if norm.weight is None else inverse * norm.weight.double()
    beta = torch.zeros_like(factor) if norm.bias is None else norm.bias.double()
    old_bias = torch.zeros_like(factor) if bias is None else bias.double()
    shape = [1] * weight.dim()
    shape[axis] = -1
    exact = weight.double()
    merged = (exact * factor.reshape(shape)).to(weight.dtype)
    new_bias = (beta + (old_bias - norm.running_mean.double()) * factor).to(weight.dtype)
    error = _proof(norm, _rows(exact, axis), old_bias, _rows(merged, axis), new_bias)
    if not error <= TOLERANCE:
        raise IsobitError(f"folding batch norm into {name} changes its output by {error:.2g}: check its statistics")
    layer.weight = nn.Parameter(merged, requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(new_bias, requires_grad=weight.requires_grad)
    return error


def _rows(weight: Tensor, axis: int) -> Tensor:
    """The weight as (output channels, values)."""
    return weight.movedim(axis, 0).flatten(1)


def _proof(
    norm: nn.modules.batchnorm._BatchNorm, weight: Tensor, bias: Tensor, merged: Tensor, new_bias: Tensor
) -> float:
    """Largest |before - after| of a channel for one random patch, relative to the length of its weights."""
    generator = torch.Generator().manual_seed(0)
    patch = torch.randn(1, weight.shape[1], generator=generator, dtype=torch.float64).to(weight.device)
    assert norm.running_mean is not None and norm.running_var is not None
    before = nn.functional.batch_norm(
        patch @ weight.T + bias,
        norm.running_mean.double(),
        norm.running_var.double(),
        None if norm.weight is None else norm.weight.double(),
        None if norm.bias is None else norm.bias.double(),
        eps=norm.eps,
    )
    after = patch @ merged.double().T + new_bias.double()
    size = patch.norm() * merged.norm(dim=1).double() + new_bias.abs().double() + 1e-30
    return float(((before - after).abs() / size).max())


def calls_of(model: fx.GraphModule) -> Counter[str]:
    """How often the graph calls each module."""
    return Counter(str(node.target) for node in model.graph.nodes if node.op == "call_module")


def obstacle(model: fx.GraphModule, source: fx.Node, node: fx.Node, calls: Mapping[str, int]) -> str:
    """Why a batch norm cannot be merged, or nothing."""
    if source.op != "call_module":
        return "no layer with weights in front of it"
    layer, norm = model.get_submodule(str(source.target)), model.get_submodule(str(node.target))
    if not isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
        return "no layer with weights in front of it"
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        return "it has no running statistics"
    if len(source.users) != 1:
        return f"the output of {source.target} has other readers"
    if calls[str(source.target)] != 1 or calls[str(node.target)] != 1:
        return "a layer that is called more than once"
    if isinstance(layer, nn.modules.conv._ConvTransposeNd) and layer.groups != 1:
        return "a grouped transposed convolution"
    return ""

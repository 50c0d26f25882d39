"""Batch-norm folding by merging: one convolution with a bias does what conv and BN did (Jacob et al., eq. 14)."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, fx, nn

from isobit.core.errors import IsobitError
from isobit.core.granularity import PerChannel, expand
from isobit.graph.passes.batch_norms import BatchNorm, affine, output_axis, take_batch_norms
from isobit.graph.passes.folded_moments import remember_moments
from isobit.graph.passes.protocol import PassReport

TOLERANCE = 1e-5
"""Largest relative difference that rounding the folded weights to float32 may cause, per layer."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class FoldBatchNorm:
    """Merge every batch norm into the convolution or linear layer in front of it, from its running statistics.

    W' = W · γ / sqrt(σ² + ε) per output channel, b' = β + (b - μ) γ / sqrt(σ² + ε). What β and γ say about the layer's
    output is remembered in the model's meta (`isobit.graph.passes.folded_moments`).
    """

    name: str = "fold_bn"
    requires: str = "a captured model"
    ensures: str = "the output in eval mode is unchanged, to the rounding of float32"

    def apply(self, model: fx.GraphModule) -> PassReport:
        """Fold in place. A batch norm whose input has another reader, or no weights in front, stays and is named."""
        errors = [0.0]

        def take(name: str, layer: nn.Module, norm: BatchNorm) -> str:
            errors.append(fold_batch_norm(layer, norm, name=name))
            remember_moments(model, name, norm)
            return ""

        report = take_batch_norms(model, take)
        for name in report.changed:
            model.set_submodule(name, nn.Identity())
        return replace(report, largest_error=max(errors))


@torch.no_grad()
def fold_batch_norm(layer: nn.Module, norm: BatchNorm, *, name: str = "conv") -> float:
    """Merge `norm` into `layer` in place, in float64, and prove it: returns the largest relative error.

    The proof compares layer-then-norm with the merged layer on random inputs of the layer's own kernel size, in
    float64; raises IsobitError beyond `TOLERANCE`.
    """
    weight, bias, axis = layer.weight, layer.bias, output_axis(layer)
    assert isinstance(weight, Tensor) and not isinstance(bias, nn.Module)
    factor, exact_bias = affine(layer, norm)
    exact = weight.double()
    merged = (exact * expand(factor, weight.dim(), PerChannel(axis))).to(weight.dtype)
    new_bias = exact_bias.to(weight.dtype)
    old_bias = torch.zeros_like(factor) if bias is None else bias.double()
    error = _proof(norm, _rows(exact, axis), old_bias, _rows(merged, axis), new_bias)
    if not error <= TOLERANCE:
        raise IsobitError(f"folding batch norm into {name} changes its output by {error:.2g}: check its statistics")
    layer.weight = nn.Parameter(merged, requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(new_bias, requires_grad=weight.requires_grad)
    return error


def _rows(weight: Tensor, axis: int) -> Tensor:
    """The weight as (output channels, values)."""
    return weight.movedim(axis, 0).flatten(1)


def _proof(norm: BatchNorm, weight: Tensor, bias: Tensor, merged: Tensor, new_bias: Tensor) -> float:
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

"""Layers that train together with the batch norm behind them, quantized as they will run: merged into one.

The strategies of MQBench (Li et al. 2021, arXiv:2111.03759, section 3.3), W the weight, b its bias, Q the weight's
quantizer, f = γ / σ per output channel, with σ of the running (r) or of the batch's (B) statistics:

- 1: conv(x, Q(W f_r)) + β + (b - μ_r) f_r. One convolution; γ and β learn, the statistics stay as they are.
- 2: conv(x, Q(W f_B)) + β + (b - μ_B) f_B, the batch's statistics from a second, float convolution
  (Jacob et al. 2018, arXiv:1712.05877, section 3.2).
- 3: conv(x, Q(W f_r)) · σ_r / σ_B + β + (b - μ_B) f_B: folding with the running statistics keeps Q's input
  steady, the correction is undone behind it (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2).
- 4: BN(conv(x, Q(W f_r) / f_r) + b): one convolution.

Strategies -1 (batch norm stays behind Q(W)) and 0 (merged once, before training) need no layer of their own.
In eval mode, and where the batch norm is in eval mode (frozen), all compute strategy 1. All but 1 are plain
convolution and batch norm in training where Q is the identity.
"""

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.core.distributed import mean_over_ranks
from isobit.graph.slots import QUANTIZED_LAYERS, Slot

Strategy = int
STRATEGIES: tuple[Strategy, ...] = (-1, 0, 1, 2, 3, 4)

SMALLEST_FACTOR = 1e-8
"""A factor f below this (a γ of zero) cannot be divided by: strategy 4 takes this value instead of it."""


class _Folded(nn.Module):
    """What the folded layers share. `norm` belongs to the network's own tree, so it is not a child here."""

    weight: Tensor
    bias: Tensor | None
    weight_slot: Slot
    norm: nn.modules.batchnorm._BatchNorm
    strategy: Strategy
    synchronized: bool

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: as layer and batch norm. Raises ValueError where the batch has one value per channel."""
        if self.strategy == 1 or not self.norm.training:
            weight, bias = merged(self)
            return self.convolve(x, self.weight_slot(weight), bias)
        y: Tensor = _FORWARD[self.strategy](self, x)
        return y

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with another weight and bias."""
        raise NotImplementedError

    @property
    def axis(self) -> int:
        """The axis of the output's channels."""
        return 1

    def along_weight(self, f: Tensor) -> Tensor:
        """One value per output channel, shaped to multiply the weight."""
        return f.reshape(-1, *[1] * (self.weight.dim() - 1))

    def along_output(self, f: Tensor) -> Tensor:
        """One value per output channel, shaped to multiply the output."""
        return f.reshape(1, -1, *[1] * (self.weight.dim() - 2))


class _FoldedConv(_Folded, nn.modules.conv._ConvNd):
    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)


@final
class FoldedConv1d(_FoldedConv, nn.Conv1d):
    """nn.Conv1d with nn.BatchNorm1d."""


@final
class FoldedConv2d(_FoldedConv, nn.Conv2d):
    """nn.Conv2d with nn.BatchNorm2d."""


@final
class FoldedConv3d(_FoldedConv, nn.Conv3d):
    """nn.Conv3d with nn.BatchNorm3d."""


@final
class FoldedConvTranspose2d(_Folded, nn.ConvTranspose2d):  # type: ignore[misc]
    """nn.ConvTranspose2d with nn.BatchNorm2d; its weight is (in, out / groups, …)."""

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See the class."""
        return F.conv_transpose2d(
            x,
            weight,
            bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            self.output_padding,
            self.groups,
            self.dilation,
        )

    def along_weight(self, f: Tensor) -> Tensor:
        """See the class: input channel i, of group g, makes the outputs of group g."""
        per_group = f.reshape(self.groups, 1, -1).expand(-1, self.in_channels // self.groups, -1)
        return per_group.reshape(self.in_channels, -1, *[1] * (self.weight.dim() - 2))


@final
class FoldedLinear(_Folded, nn.Linear):  # type: ignore[misc]
    """nn.Linear with nn.BatchNorm1d, for inputs (n, features)."""

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See the class."""
        return F.linear(x, weight, bias)


FOLDED_LAYERS: dict[type[nn.Module], type[_Folded]] = {
    nn.Conv1d: FoldedConv1d,
    nn.Conv2d: FoldedConv2d,
    nn.Conv3d: FoldedConv3d,
    nn.ConvTranspose2d: FoldedConvTranspose2d,
    nn.Linear: FoldedLinear,
}


def merged(layer: _Folded) -> tuple[Tensor, Tensor]:
    """(W f, β + (b - μ) f) with the running statistics: what is deployed, before the weight is quantized."""
    f = _gamma(layer.norm) * torch.rsqrt(_running_var(layer.norm) + layer.norm.eps)
    return layer.weight * layer.along_weight(f), _shift(layer, layer.norm.running_mean, f)


def is_folded(layer: nn.Module) -> bool:
    """Whether the layer holds a batch norm."""
    return isinstance(layer, _Folded)


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """The float weight that a layer's quantizer sees at inference, and its bias."""
    if isinstance(layer, _Folded):
        return merged(layer)
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
    return weight, bias


def fold_in_training(
    layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm, strategy: Strategy, *, synchronized: bool
) -> None:
    """Turn a quantized layer into its folded twin, in place: same object and keys; `norm` stays where it is."""
    layer.__class__ = next(twin for kind, twin in FOLDED_LAYERS.items() if isinstance(layer, kind))
    layer.__dict__ |= {"norm": norm, "strategy": strategy, "synchronized": synchronized}


@torch.no_grad()
def merge_for_good(model: nn.Module) -> None:
    """Give every folded layer the merged weight and bias and take its batch norm away: the end of training."""
    folded = [layer for layer in model.modules() if isinstance(layer, _Folded)]
    names = {module: name for name, module in model.named_modules()}
    for layer in folded:
        weight, bias = merged(layer)
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        model.set_submodule(names[layer.norm], nn.Identity())
        for key in ("norm", "strategy", "synchronized"):
            del layer.__dict__[key]
        twin = next(twin for kind, twin in QUANTIZED_LAYERS.items() if isinstance(layer, kind))
        layer.__class__ = twin  # type: ignore[assignment]


def _with_batch_statistics(layer: _Folded, x: Tensor) -> Tensor:
    """Strategy 2."""
    mean, var = _observe(layer, x)
    f = _gamma(layer.norm) * torch.rsqrt(var + layer.norm.eps)
    return layer.convolve(x, layer.weight_slot(layer.weight * layer.along_weight(f)), _shift(layer, mean, f))


def _with_correction(layer: _Folded, x: Tensor) -> Tensor:
    """Strategy 3. The running statistics are those of before this batch."""
    running = torch.sqrt(_before_update(layer.norm) + layer.norm.eps)
    f = _gamma(layer.norm) / running
    mean, var = _observe(layer, x)
    batch = torch.sqrt(var + layer.norm.eps)
    y = layer.convolve(x, layer.weight_slot(layer.weight * layer.along_weight(f)), None)
    shift = _shift(layer, mean, _gamma(layer.norm) / batch)
    return y * layer.along_output(running / batch) + layer.along_output(shift)


def _with_norm_behind(layer: _Folded, x: Tensor) -> Tensor:
    """Strategy 4, with 1 / f on the weight, which is smaller than the output."""
    f = _gamma(layer.norm) * torch.rsqrt(_before_update(layer.norm) + layer.norm.eps)
    f = layer.along_weight(torch.where(f.abs() < SMALLEST_FACTOR, SMALLEST_FACTOR, f))
    y = layer.convolve(x, layer.weight_slot(layer.weight * f) / f, layer.bias)
    if not layer.synchronized:
        normalized: Tensor = layer.norm(y)
        return normalized
    mean, var = _statistics(layer, y)
    f = _gamma(layer.norm) * torch.rsqrt(var + layer.norm.eps)
    beta = layer.norm.bias if layer.norm.bias is not None else torch.zeros_like(f)
    return y * layer.along_output(f) + layer.along_output(beta - mean * f)


_FORWARD: dict[int, Any] = {2: _with_batch_statistics, 3: _with_correction, 4: _with_norm_behind}


def _observe(layer: _Folded, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the float layer's output."""
    return _statistics(layer, layer.convolve(x, layer.weight, layer.bias))


def _statistics(layer: _Folded, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, over all ranks where `synchronized`; the running ones take them in."""
    norm, dims = layer.norm, [d for d in range(y.dim()) if d != 1]
    count = y.numel() // y.shape[1]
    if layer.synchronized:
        mean, ranks = mean_over_ranks(y.mean(dims))
        var, _ = mean_over_ranks((y - layer.along_output(mean)).square().mean(dims))
        count *= ranks
    else:
        var, mean = torch.var_mean(y, dims, correction=0)
    if count == 1:
        raise ValueError(f"a batch norm in training needs more than one value per channel, got {tuple(y.shape)}")
    with torch.no_grad():
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
        rate = norm.momentum if norm.momentum is not None else 1.0 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean.detach().to(norm.running_mean.dtype), rate)
        norm.running_var.lerp_(var.detach().to(norm.running_var.dtype) * (count / (count - 1)), rate)
    return mean, var


def _shift(layer: _Folded, mean: Tensor | None, f: Tensor) -> Tensor:
    """β + (b - μ) f."""
    assert mean is not None
    centre = -mean if layer.bias is None else layer.bias - mean
    return centre * f if layer.norm.bias is None else layer.norm.bias + centre * f


def _gamma(norm: nn.modules.batchnorm._BatchNorm) -> Tensor:
    return norm.weight if norm.weight is not None else torch.ones_like(_running_var(norm))


def _running_var(norm: nn.modules.batchnorm._BatchNorm) -> Tensor:
    assert norm.running_var is not None
    return norm.running_var.clone()  # the buffer changes before the backward pass needs it


def _before_update(norm: nn.modules.batchnorm._BatchNorm) -> Tensor:
    """The running variance, where this very step changes it.

    torch.compile would compute a clone once more in the backward pass, from the buffer as it is then: the gradients of
    what depends on it were wrong. An operator of our own it does not repeat.
    """
    assert norm.running_var is not None
    if not torch.compiler.is_compiling():
        return _running_var(norm)
    kept: Tensor = _snapshot(norm.running_var)
    return kept


@torch.library.custom_op("isobit::snapshot", mutates_args=())
def _snapshot(x: Tensor) -> Tensor:
    return x.clone()


@_snapshot.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)

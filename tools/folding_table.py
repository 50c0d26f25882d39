"""How far each strategy of batch-norm folding is from plain layer and batch norm, without quantization, in float64.

    python tools/folding_table.py

For every kind of layer, with and without a bias, one training step: the largest relative difference of the output, of
the gradients (input, weight, bias, γ, β) and of the running statistics; then in eval mode of the output, and of one
merged layer with the statistics reached. Strategies 0 and 1 do not use the batch's statistics: only eval and merging
apply. In a network, the batch norm of a grouped transposed convolution stays under every strategy, and is named.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from bench_output import Table, finish
from isobit.graph.folding import STRATEGIES, Strategy, fold_in_training, weight_and_bias
from isobit.graph.passes.fold_bn import fold_batch_norm
from isobit.graph.slots import Slot, give_weight_slot

LAYERS: dict[str, tuple[Callable[[bool], nn.Module], type[nn.modules.batchnorm._BatchNorm], tuple[int, ...]]] = {
    "conv": (lambda bias: nn.Conv2d(6, 8, 3, padding=1, bias=bias), nn.BatchNorm2d, (5, 6, 7, 7)),
    "depthwise": (lambda bias: nn.Conv2d(6, 6, 3, groups=6, bias=bias), nn.BatchNorm2d, (5, 6, 7, 7)),
    "grouped": (lambda bias: nn.Conv2d(6, 9, 3, groups=3, stride=2, bias=bias), nn.BatchNorm2d, (5, 6, 7, 7)),
    "transposed": (lambda bias: nn.ConvTranspose2d(6, 8, 3, stride=2, bias=bias), nn.BatchNorm2d, (5, 6, 5, 5)),
    "transposed, grouped": (
        lambda bias: nn.ConvTranspose2d(6, 9, 3, groups=3, bias=bias),
        nn.BatchNorm2d,
        (5, 6, 5, 5),
    ),
    "1-D": (lambda bias: nn.Conv1d(6, 8, 3, dilation=2, bias=bias), nn.BatchNorm1d, (5, 6, 9)),
    "3-D": (lambda bias: nn.Conv3d(4, 5, 2, bias=bias), nn.BatchNorm3d, (4, 4, 4, 4, 4)),
    "linear": (lambda bias: nn.Linear(6, 8, bias=bias), nn.BatchNorm1d, (16, 6)),
}


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Largest differences, relative to the largest value of each tensor; None where there is no promise."""

    output: float | None
    gradients: float | None
    statistics: float | None
    eval: float | None
    merged: float | None


@dataclass(frozen=True, kw_only=True)
class Twin:
    """What a strategy makes of a layer and its norm: the forward pass, the modules in it, one layer at the end."""

    forward: Callable[[Tensor], Tensor]
    layer: nn.Module
    norm: nn.modules.batchnorm._BatchNorm
    merged: Callable[[], nn.Module] | None


def pair(kind: str, *, bias: bool, zero_gamma: bool = False) -> tuple[nn.Module, nn.modules.batchnorm._BatchNorm]:
    """A layer and its batch norm, in float64, with statistics as training leaves them."""
    torch.manual_seed(0)
    build, norm_type, _ = LAYERS[kind]
    layer = build(bias).double()
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    norm = norm_type(channels).double()
    with torch.no_grad():
        norm.weight.normal_(1.0, 0.5)
        norm.bias.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.3, 3.0)
        if zero_gamma:
            norm.weight[0] = 0.0
    return layer, norm


def twin(layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm, strategy: Strategy) -> Twin | None:
    """That of copies, whose quantizer passes its input through; None where strategy 0 has to leave the norm."""
    layer, norm = copy.deepcopy((layer, norm))
    mergeable = not (isinstance(layer, nn.modules.conv._ConvTransposeNd) and layer.groups != 1)
    if strategy == 0:
        if not mergeable:
            return None
        fold_batch_norm(layer, norm)
        give_weight_slot(layer, Slot(nn.Identity(), name="weight"))
        return Twin(forward=layer, layer=layer, norm=norm, merged=lambda: layer)

    def merged() -> nn.Module:
        single, own = copy.deepcopy((layer, norm))
        fold_batch_norm(single, own)
        return single

    give_weight_slot(layer, Slot(nn.Identity(), name="weight"))
    if strategy == -1:
        return Twin(forward=lambda v: norm(layer(v)), layer=layer, norm=norm, merged=merged if mergeable else None)
    plain = copy.deepcopy(layer)
    fold_in_training(layer, norm, strategy, synchronized=False)

    def single() -> nn.Module:
        weight, shift = weight_and_bias(layer)
        plain.weight, plain.bias = nn.Parameter(weight), nn.Parameter(shift)
        return plain

    return Twin(forward=layer, layer=layer, norm=norm, merged=single)


def measure(kind: str, strategy: Strategy, *, bias: bool, zero_gamma: bool = False) -> Errors | None:
    """One step of training of both, then eval; None where the strategy leaves the batch norm as it is."""
    layer, norm = pair(kind, bias=bias, zero_gamma=zero_gamma)
    ours = twin(layer, norm, strategy)
    if ours is None:
        return None
    x = torch.randn(LAYERS[kind][2], dtype=torch.float64)
    for module in (layer, norm, ours.layer, ours.norm):
        module.train()
    trained = strategy not in (0, 1)
    output = gradients = statistics = None
    if trained:
        want, wanted = _step(lambda v: norm(layer(v)), x, (layer, norm))
        got, found = _step(ours.forward, x, (ours.layer, ours.norm))
        output, gradients = _worst([(got, want)]), _worst(zip(found, wanted, strict=True))
        statistics = _worst([(getattr(ours.norm, s), getattr(norm, s)) for s in ("running_mean", "running_var")])
    norm.load_state_dict(ours.norm.state_dict())
    for module in (layer, norm, ours.layer, ours.norm):
        module.eval()
    with torch.no_grad():
        want = norm(layer(x))
        return Errors(
            output=output,
            gradients=gradients,
            statistics=statistics,
            eval=_worst([(ours.forward(x), want)]),
            merged=None if ours.merged is None else _worst([(ours.merged()(x), want)]),
        )


def _step(
    forward: Callable[[Tensor], Tensor], x: Tensor, modules: tuple[nn.Module, nn.Module]
) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of a fixed loss to the input and every parameter."""
    x = x.clone().requires_grad_()
    y = forward(x)
    layer, norm = modules
    parameters = [x, layer.weight, norm.weight, norm.bias]
    if layer.bias is not None:
        parameters.append(layer.bias)
    upstream = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(y, parameters, upstream, allow_unused=True)
    return y.detach(), [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def _worst(pairs: Iterator[tuple[Tensor, Tensor]] | list[tuple[Tensor, Tensor]]) -> float:
    return max(float((a - b).abs().max() / (b.abs().max() + 1.0)) for a, b in pairs)


def rows() -> Iterator[tuple[str, ...]]:
    """A row for each strategy and kind of layer: the worst over bias and no bias, and γ = 0."""
    for strategy in STRATEGIES:
        for kind in LAYERS:
            found = (measure(kind, strategy, bias=b, zero_gamma=z) for b in (True, False) for z in (True, False))
            cases = [case for case in found if case is not None]
            worst = {f.name: [v for c in cases if (v := getattr(c, f.name)) is not None] for f in fields(Errors)}
            yield str(strategy), kind, *(f"{max(v):.1e}" if v else "" for v in worst.values())


def main() -> int:
    columns = ("strategy", "layer", "training output", "gradients", "statistics", "eval", "one merged layer")
    table = Table(title="Batch-norm folding against layer and batch norm", columns=columns, rows=tuple(rows()))
    return finish([table], json_file=None, records=[], failed=[])


if __name__ == "__main__":
    sys.exit(main())

"""How far each strategy of batch-norm folding is from plain layer and batch norm, without quantization, in float64.

    python tools/folding_table.py

For every kind of layer, with and without a bias, one training step: the largest relative difference of the output, of
the gradients (input, weight, bias, γ, β) and of the running statistics; then in eval mode of the output, and of one
merged layer with the statistics reached. Strategy 1 does not use the batch's statistics: only eval and merging apply.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from bench_output import Table, finish
from isobit.graph.folding import STRATEGIES, Strategy, fold_in_training, weight_and_bias
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
    eval: float
    merged: float


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


def folded(layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm, strategy: Strategy) -> nn.Module:
    """The folded twin of copies, whose quantizer passes its input through."""
    layer, norm = copy.deepcopy((layer, norm))
    give_weight_slot(layer, Slot(nn.Identity(), name="weight"))
    fold_in_training(layer, norm, strategy, synchronized=False)
    return layer


def measure(kind: str, strategy: Strategy, *, bias: bool, zero_gamma: bool = False) -> Errors:
    """One step of training of both, then eval."""
    layer, norm = pair(kind, bias=bias, zero_gamma=zero_gamma)
    ours = folded(layer, norm, strategy)
    x = torch.randn(LAYERS[kind][2], dtype=torch.float64)
    for module in (layer, norm, ours, ours.norm):
        module.train()
    plain = _step(lambda v: norm(layer(v)), x, (layer, norm))
    own = _step(ours, x, (ours, ours.norm))
    trained = strategy != 1
    statistics = None
    if trained:
        statistics = _worst(
            zip((ours.norm.running_mean, ours.norm.running_var), (norm.running_mean, norm.running_var), strict=True)
        )
    norm.load_state_dict(ours.norm.state_dict())
    for module in (layer, norm, ours, ours.norm):
        module.eval()
    with torch.no_grad():
        want = norm(layer(x))
        weight, shift = weight_and_bias(ours)
        single = copy.deepcopy(layer)
        single.weight, single.bias = nn.Parameter(weight), nn.Parameter(shift)
        return Errors(
            output=_worst([(own[0], plain[0])]) if trained else None,
            gradients=_worst(zip(own[1], plain[1], strict=True)) if trained else None,
            statistics=statistics,
            eval=_worst([(ours(x), want)]),
            merged=_worst([(single(x), want)]),
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
    for strategy in STRATEGIES[2:]:
        for kind in LAYERS:
            cases = [measure(kind, strategy, bias=b, zero_gamma=z) for b in (True, False) for z in (True, False)]
            worst = {f.name: [v for c in cases if (v := getattr(c, f.name)) is not None] for f in fields(Errors)}
            yield str(strategy), kind, *(f"{max(v):.1e}" if v else "" for v in worst.values())


def main() -> int:
    columns = ("strategy", "layer", "training output", "gradients", "statistics", "eval", "one merged layer")
    table = Table(title="Batch-norm folding against layer and batch norm", columns=columns, rows=tuple(rows()))
    return finish([table], json_file=None, records=[], failed=[])


if __name__ == "__main__":
    sys.exit(main())

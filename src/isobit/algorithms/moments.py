"""What batch norm tells of tensors: means and ranges without data (Nagel et al. 2019, arXiv:1906.04721)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from isobit.graph.capped import CappedReLU
from isobit.graph.passes.batch_norms import BatchNorm
from isobit.graph.tensors import Tensors, tensors_of

DEVIATIONS = 6.0
"""Half the width of the range of a normal value, in standard deviations (section 5, "data-free")."""

SAME = frozenset({"identity", "dropout", "quantize", "pad", "avg_pool", "global_avg_pool", "mean", "max_pool"})
"""Kinds whose result stays within the range of their input, channel by channel; zero padding adds 0."""

CURVES = frozenset(
    {"hardswish", "hardsigmoid", "sigmoid", "tanh", "silu", "gelu", "leaky_relu", "prelu", "elu", "clamp"}
)
"""Functions of one value that are integrated by their values."""

POINTS = 513


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean, standard deviation and range of each channel, all (channels,), float64.

    `mean` and `std` are None where only the range is known.
    """

    low: Tensor
    high: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None

    @staticmethod
    def normal(mean: Tensor, std: Tensor) -> "Moments":
        """Those of N(mean, std²): [mean - 6 std, mean + 6 std]."""
        mean, std = mean.detach().double(), std.detach().double().abs()
        return Moments(mean - DEVIATIONS * std, mean + DEVIATIONS * std, mean, std)

    def scaled(self, s: Tensor) -> "Moments":
        """Those of x / s, s > 0, one for each channel."""
        mean, std = (None if x is None else x / s for x in (self.mean, self.std))
        return Moments(self.low / s, self.high / s, mean, std)


def clipped_normal(mean: Tensor, std: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of clip(x, a, c) with x ~ N(μ, σ²), element by element (appendix C of the paper).

    With A = (a - μ) / σ, C = (c - μ) / σ and Z = Φ(C) - Φ(A):
    E = σ (φ(A) - φ(C)) + μ Z + a Φ(A) + c (1 - Φ(C)),
    E₂ = (μ² + σ²) Z + σ (a + μ) φ(A) - σ (c + μ) φ(C) + a² Φ(A) + c² (1 - Φ(C)), and the variance E₂ - E².
    Bounds may be infinite, σ may be 0.
    """
    sigma = std.clamp(min=1e-30)
    a, c = ((bound - mean) / sigma for bound in (low, high))
    pdf_a, pdf_c = (torch.exp(-v.square() / 2) / math.sqrt(2 * math.pi) for v in (a, c))
    below, above = torch.special.ndtr(a), torch.special.ndtr(-c)
    inside = 1 - below - above
    first_a, first_c = (torch.where(torch.isinf(v), 0.0, v) for v in (low.expand_as(mean), high.expand_as(mean)))
    e = sigma * (pdf_a - pdf_c) + mean * inside + first_a * below + first_c * above
    e2 = (mean.square() + sigma.square()) * inside + first_a.square() * below + first_c.square() * above
    e2 = e2 + sigma * (first_a + mean) * pdf_a - sigma * (first_c + mean) * pdf_c
    return e, (e2 - e.square()).clamp(min=0)


def batch_norm_moments(norm: BatchNorm) -> Moments:
    """The output of a batch norm: N(β, γ²)."""
    size = int(norm.num_features)
    beta = norm.bias if isinstance(norm.bias, Tensor) else torch.zeros(size)
    gamma = norm.weight if isinstance(norm.weight, Tensor) else torch.ones(size)
    return Moments.normal(beta, gamma)


def moments_in_front(model: fx.GraphModule) -> dict[str, tuple[str, Moments]]:
    """For each layer that only a batch norm reads: the norm's name and moments. Ask before batch norm is merged."""
    tensors, found = tensors_of(model), {}
    for node in model.graph.nodes:
        if tensors.kinds[node] != "batch_norm" or node.op != "call_module":
            continue
        norm, sources = model.get_submodule(str(node.target)), tensors.inputs(node)
        if isinstance(norm, BatchNorm) and norm.running_mean is not None and sources[0].op == "call_module":
            found[str(sources[0].target)] = (str(node.target), batch_norm_moments(norm))
    return found


@torch.no_grad()
def propagated(model: fx.GraphModule, merged: Mapping[str, Moments]) -> dict[fx.Node, Moments]:
    """The moments of every tensor that batch norms and caps say something about, in a captured or prepared graph.

    `merged` are those of layers that took in their batch norm. Sums add means, variances and ranges, so that the range
    of a sum is an upper bound; a function of a value is that of a clipped normal, or of the normal's quantiles.
    """
    tensors, known = tensors_of(model), dict[fx.Node, Moments]()
    for node in model.graph.nodes:
        found = _moments(model, tensors, node, known, merged)
        if found is not None and _fits(node, found):
            known[node] = found
    return known


def _moments(
    model: fx.GraphModule,
    tensors: Tensors,
    node: fx.Node,
    known: Mapping[fx.Node, Moments],
    merged: Mapping[str, Moments],
) -> Moments | None:
    kind = tensors.kinds[node]
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    if kind in ("conv", "conv_transpose", "linear"):
        return merged.get(str(node.target))
    if kind == "batch_norm":
        return batch_norm_moments(module) if isinstance(module, BatchNorm) else None
    inputs = [known.get(n) for n in tensors.inputs(node)]
    if kind in ("relu6", "capped_relu"):
        return _capped(inputs[0], module, node)
    if not inputs or any(m is None for m in inputs):
        return None
    sources = [m for m in inputs if m is not None]
    if kind == "relu":
        return _clipped(sources[0], torch.zeros(1), torch.full((1,), math.inf))
    if kind in SAME:
        return _within(sources[0], kind)
    if kind == "reshape":
        return _reshaped(sources[0], tensors.inputs(node)[0], node)
    if kind == "add" and len(sources) == 2:
        return _sum(sources)
    if kind == "concat":
        return _concatenated(sources) if _axis(node) == 1 else None
    return _of_curve(model, node, sources[0]) if kind in CURVES else None


def _clipped(m: Moments, low: Tensor, high: Tensor) -> Moments:
    low, high = low.double().expand_as(m.low), high.double().expand_as(m.low)
    lowest, highest = m.low.clamp(low, high), m.high.clamp(low, high)
    if m.mean is None or m.std is None:
        return Moments(lowest, highest)
    mean, variance = clipped_normal(m.mean, m.std, low, high)
    return Moments(lowest, highest, mean, variance.sqrt())


def _capped(m: Moments | None, module: nn.Module | None, node: fx.Node) -> Moments | None:
    """A cap says something also where nothing is known of the input."""
    cap = module.cap.double() if isinstance(module, CappedReLU) else torch.full((1,), 6.0, dtype=torch.float64)
    if m is not None:
        return _clipped(m, torch.zeros(1), cap)
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() < 2:
        return None
    cap = cap.expand(int(value.shape[1]))
    return Moments(torch.zeros_like(cap), cap)


def _within(m: Moments, kind: str) -> Moments:
    if kind == "max_pool":  # its mean is larger, by how much depends on how alike neighbours are
        return Moments(m.low, m.high)
    if kind == "pad":
        return Moments(m.low.clamp(max=0), m.high.clamp(min=0), m.mean, m.std)
    return m


def _reshaped(m: Moments, source: fx.Node, node: fx.Node) -> Moments | None:
    """Flattened maps: each channel's positions follow each other."""
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or after.dim() != 2:
        return None
    repeats = int(after.shape[1]) // len(m.low)
    low, high, mean, std = (None if x is None else x.repeat_interleave(repeats) for x in (m.low, m.high, m.mean, m.std))
    assert low is not None and high is not None
    return Moments(low, high, mean, std)


def _sum(sources: Sequence[Moments]) -> Moments | None:
    a, b = sources
    if a.low.shape != b.low.shape:
        return None
    if a.mean is None or b.mean is None or a.std is None or b.std is None:
        return Moments(a.low + b.low, a.high + b.high)
    return Moments(a.low + b.low, a.high + b.high, a.mean + b.mean, (a.std.square() + b.std.square()).sqrt())


def _concatenated(sources: Sequence[Moments]) -> Moments:
    means = [m.mean for m in sources if m.mean is not None]
    stds = [m.std for m in sources if m.std is not None]
    complete = len(means) == len(stds) == len(sources)
    return Moments(
        torch.cat([m.low for m in sources]),
        torch.cat([m.high for m in sources]),
        torch.cat(means) if complete else None,
        torch.cat(stds) if complete else None,
    )


def _axis(node: fx.Node) -> int:
    axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    return axis if isinstance(axis, int) else 0


def _of_curve(model: fx.GraphModule, node: fx.Node, m: Moments) -> Moments | None:
    """A function of a normal value: the mean over its quantiles, the range over an even grid."""
    if m.mean is None or m.std is None or len(node.all_input_nodes) != 1:
        return None
    steps = (torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS
    quantiles = m.mean + m.std * torch.special.ndtri(steps)[:, None]
    grid = m.low + (m.high - m.low) * torch.linspace(0, 1, POINTS, dtype=torch.float64)[:, None]
    (y, over) = (_called(model, node, x) for x in (quantiles, grid))
    return Moments(over.amin(0), over.amax(0), y.mean(0), y.std(0, correction=0))


def _called(model: fx.GraphModule, node: fx.Node, x: Tensor) -> Tensor:
    """The node's function of values (points, channels)."""
    x = x.float()
    if node.op == "call_module":
        result: Tensor = model.get_submodule(str(node.target))(x)
    elif node.op == "call_method":
        result = getattr(x, str(node.target))(*node.args[1:], **node.kwargs)
    else:
        assert callable(node.target)
        result = node.target(x, *node.args[1:], **node.kwargs)
    return result.double()


def _fits(node: fx.Node, found: Moments) -> bool:
    """Whether axis 1 of the tensor has these channels, so that nothing is said of another axis."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == len(found.low)

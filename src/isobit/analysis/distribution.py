"""Distributions: the values of every quantized tensor against its range, scale and zero point."""

import math
from typing import Literal, final

import torch
from torch import Tensor, fx

from isobit.analysis.layer_error import pieces, side_by_side
from isobit.analysis.layers import Layer, quantized_layers
from isobit.analysis.modes import measured
from isobit.core.batches import Data
from isobit.core.errors import CalibrationError
from isobit.core.granularity import expand
from isobit.core.progress import Progress, silent
from isobit.core.qparams import DynamicRange, QParams
from isobit.core.records import Histogram, TensorRecord
from isobit.graph.names import names
from isobit.graph.slots import Slot

BINS = 256
"""Bins on each side of 0."""

CHUNK = 1 << 17
"""Values counted at a time: what stays in the cache of one core."""


@final
class Counts:
    """A histogram that grows with its data: bins [i·w, (i + 1)·w) with w the least 2^k that needs no more than `BINS`.

    When a larger value comes, w doubles and neighbours merge, which gives exactly the counts that wide bins would
    have had from the start.

    >>> counts = Counts()
    >>> counts.see(torch.tensor([0.0, 1.0, 255.0]))
    >>> counts.see(torch.tensor([-511.0]))
    >>> found = counts.histogram()
    >>> found.low, found.high, len(found.counts), found.counts[256], sum(found.counts)
    (-512.0, 256.0, 384, 2, 4)
    """

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self._exponent = -120
        self._counts = torch.zeros(2 * BINS, dtype=torch.int64)

    def see(self, x: Tensor) -> None:
        """Count values; raises CalibrationError where one is NaN or infinite."""
        if x.numel() == 0:
            return
        low, high = (float(v) for v in torch.aminmax(x))
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError("holds NaN or Inf")
        self.low, self.high = min(self.low, low), max(self.high, high)
        if low < 0.0 or high > 0.0:
            self._widen(math.frexp(max(-low, high))[1] - BINS.bit_length() + 1)
        inverse = 2.0**-self._exponent
        for part in torch.split(x.detach().flatten(), CHUNK):
            index = (part.float() * inverse).floor_().to(torch.int64) + BINS
            self._counts += torch.bincount(index, minlength=2 * BINS).cpu()

    def histogram(self) -> Histogram:
        """The bins from the first to the last that holds a value; raises CalibrationError where there is none."""
        used = self._counts.nonzero().flatten().tolist()
        if not used:
            raise CalibrationError("no value was seen")
        first, last, width = used[0], used[-1] + 1, 2.0**self._exponent
        counts = tuple(self._counts[first:last].tolist())
        return Histogram(low=(first - BINS) * width, high=(last - BINS) * width, counts=counts)

    def _widen(self, exponent: int) -> None:
        if exponent <= self._exponent:
            return
        target = ((torch.arange(2 * BINS) - BINS) >> min(exponent - self._exponent, 62)) + BINS
        self._counts = torch.zeros_like(self._counts).scatter_add_(0, target, self._counts)
        self._exponent = exponent


@final
class Distribution:
    """The values that one quantizer reads, batch by batch, and how many of them its range clips."""

    def __init__(self, slot: Slot, *, name: str, role: Literal["weight", "activation"]) -> None:
        self.name = name
        self.role = role
        self.grid: QParams | DynamicRange = slot.grid()
        self.values = 0
        self.clipped = 0
        self._counts = Counts()
        self._alive: Tensor | None = None

    def see(self, x: Tensor) -> None:
        """Take in float values, as they are before quantization; raises CalibrationError where one is not finite."""
        try:
            self._counts.see(x)
        except CalibrationError as error:
            raise CalibrationError(
                f"{self.name} {error} in the float network: repair the data or the weights"
            ) from error
        self.values += x.numel()
        if isinstance(self.grid, QParams):
            self.clipped += clipped(x, self.grid)
        if self.role == "activation" and x.dim() == 4:
            alive = (x != 0).any(dim=3).any(dim=2).any(dim=0)
            self._alive = alive if self._alive is None else self._alive | alive

    @property
    def dead_channels(self) -> tuple[int, ...]:
        """The channels of an activation (n, c, h, w) that were 0 everywhere, in all samples."""
        return () if self._alive is None else tuple((~self._alive).nonzero().flatten().tolist())

    @property
    def channels(self) -> int:
        """The channels of an activation (n, c, h, w), 0 for one of another shape."""
        return 0 if self._alive is None else self._alive.numel()

    def record(self) -> TensorRecord:
        """All of it as plain values."""
        histogram, scheme = self._counts.histogram(), self.grid.scheme
        low, high = self._counts.low, self._counts.high
        scale: tuple[float, ...] = ()
        zero_point: tuple[int, ...] = ()
        if isinstance(self.grid, QParams):
            lows, highs = self.grid.range()
            low, high = float(lows.min()), float(highs.max())
            scale = tuple(self.grid.scale.flatten().tolist())
            zero_point = tuple(self.grid.zero_point.flatten().tolist())
        return TensorRecord(
            name=self.name,
            role=self.role,
            scheme=str(scheme),
            bits=scheme.bits,
            quant_min=scheme.quant_min,
            quant_max=scheme.quant_max,
            clip_low=low,
            clip_high=high,
            scale=scale,
            zero_point=zero_point,
            histogram=histogram,
            clipped=self.clipped / self.values,
        )


def clipped(x: Tensor, grid: QParams) -> int:
    """How many values lie more than half a step outside the range: those that lose more than rounding takes.

    >>> from isobit.core.scheme import Scheme
    >>> grid = QParams(torch.tensor(1.0), torch.tensor(0), Scheme(bits=4))
    >>> clipped(torch.tensor([-9.0, -8.4, 7.4, 7.6]), grid)
    2
    """
    low, high = (expand(end, x.dim(), grid.scheme.granularity) for end in grid.range())
    half = expand(grid.scale, x.dim(), grid.scheme.granularity) / 2
    return int(((x < low - half) | (x > high + half)).sum())


def weight_distribution(layer: Layer) -> Distribution | None:
    """The weight of a layer, None where it has no quantized one."""
    weight = layer.float_weight
    if weight is None or layer.weight is None or layer.weight.mode != "quantize":
        return None
    found = Distribution(layer.weight, name=f"{layer.name}.weight", role="weight")
    found.see(weight)
    return found


def activation_distributions(model: fx.GraphModule, layers: tuple[Layer, ...]) -> dict[fx.Node, Distribution]:
    """An empty distribution for each quantized tensor that a layer reads from outside or writes, by its slot's node."""
    shown = names(model.graph)
    found: dict[fx.Node, Distribution] = {}
    for layer in layers:
        for node in (*(edge.origin for edge in layer.inputs), layer.output):
            module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, Slot) and module.mode == "quantize" and node not in found:
                tensor = node.all_input_nodes[0]
                found[node] = Distribution(module, name=shown[tensor], role="activation")
    return found


def distributions(model: fx.GraphModule, data: Data, *, progress: Progress = silent) -> tuple[TensorRecord, ...]:
    """Weights and activations of all quantized layers over the data: the float values, before quantization.

    Raises CalibrationError for data that does not fit, or where an activation is not finite.
    """
    layers = quantized_layers(model)
    weights = [found for layer in layers if (found := weight_distribution(layer)) is not None]
    activations = activation_distributions(model, layers)
    with measured(model) as active:
        for done, batch in enumerate(pieces(data), start=1):
            for node, x, _ in side_by_side(model, batch, active):
                if node in activations and isinstance(x, Tensor):
                    activations[node].see(x)
            progress("reading distributions", done, None)
    return tuple(found.record() for found in (*weights, *activations.values()))

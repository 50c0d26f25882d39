"""What flows between the segments of a network, for all calibration samples at once, within a limit of memory."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from isobit.analysis.modes import slots_in_mode
from isobit.core.batches import Batch, Data, batches
from isobit.core.errors import CalibrationError, UnsupportedError
from isobit.graph.segments import Segment
from isobit.graph.slots import Slot, weight_slot
from isobit.graph.tensors import attribute_of

AT_ONCE = 64
"""Samples of a batch where nothing is learned."""

Values = Mapping[fx.Node, Any]


@dataclass(frozen=True, eq=False)
class Stored:
    """One value of the graph for all samples: a tensor (samples, rows, …), where each sample makes `rows` rows.

    A size that grows with the batch is kept as `per_sample` times the batch; any other value as it is.
    """

    tensor: Tensor | None = None
    per_sample: int | None = None
    constant: Any = None
    in_file: bool = False

    def of(self, index: Tensor) -> Any:
        """The value for these samples."""
        if self.tensor is not None:
            return self.tensor[index].flatten(0, 1)
        return self.constant if self.per_sample is None else self.per_sample * len(index)


@final
class ActivationCache:
    """Values by node. What exceeds `limit` bytes lies in temporary files that vanish with the cache."""

    def __init__(self, samples: int, limit: int) -> None:
        self.samples, self.limit = samples, limit
        self._values: dict[fx.Node, Stored] = {}

    def batch(self, nodes: Iterable[fx.Node], index: Tensor) -> dict[fx.Node, Any]:
        """The values of `nodes` for the samples `index`, (n,)."""
        return {node: self._values[node].of(index) for node in nodes}

    def write(self, node: fx.Node, start: int, count: int, value: Any) -> None:
        """Take in the value of a node for `count` samples from `start` on. Raises UnsupportedError for odd batches."""
        if isinstance(value, Tensor) and _depends_on_batch(node, value):
            if not value.dim() or value.shape[0] % count:
                raise UnsupportedError(
                    f"{node.name}: its shape {tuple(value.shape)} does not divide into {count} samples: a network is "
                    "cut into segments only where each sample has rows of its own"
                )
            rows = value.reshape(count, value.shape[0] // count, *value.shape[1:])
            if node not in self._values:
                self._values[node] = self._allocate(rows)
            stored = self._values[node].tensor
            assert stored is not None
            stored[start : start + count] = rows
        elif isinstance(node.meta.get("val"), torch.SymInt) and isinstance(value, int):
            self._values[node] = Stored(per_sample=value // count)
        else:
            self._values[node] = Stored(constant=value)

    def keep(self, nodes: Iterable[fx.Node]) -> None:
        """Forget every value but those of `nodes`."""
        wanted = set(nodes)
        self._values = {node: value for node, value in self._values.items() if node in wanted}

    def batches(self) -> Iterator[Tensor]:
        """The numbers of all samples, `AT_ONCE` at a time."""
        return iter(torch.split(torch.arange(self.samples), AT_ONCE))

    def tensors(self) -> list[tuple[str, Tensor]]:
        """What is held, by the nodes' names."""
        return [(node.name, v.tensor) for node, v in self._values.items() if v.tensor is not None]

    @property
    def bytes_in_memory(self) -> int:
        """What the values take that are not in files."""
        held = [v.tensor for v in self._values.values() if v.tensor is not None and not v.in_file]
        return sum(t.numel() * t.element_size() for t in held)

    def _allocate(self, rows: Tensor) -> Stored:
        shape = (self.samples, *rows.shape[1:])
        size = rows[0].numel() * self.samples
        if self.bytes_in_memory + size * rows.element_size() <= self.limit:
            return Stored(tensor=torch.empty(shape, dtype=rows.dtype))
        with tempfile.NamedTemporaryFile(prefix="isobit.", suffix=".activations") as file:
            file.truncate(size * rows.element_size())
            found = torch.from_file(file.name, shared=True, size=size, dtype=rows.dtype).reshape(shape)
        return Stored(tensor=found, in_file=True)


def _depends_on_batch(node: fx.Node, value: Tensor) -> bool:
    """Whether the first axis counts samples, by what capture saw of it."""
    seen = node.meta.get("val")
    if isinstance(seen, Tensor) and seen.dim() == value.dim():
        return isinstance(seen.shape[0], torch.SymInt)
    return True


def execute(model: fx.GraphModule, nodes: Sequence[fx.Node], values: Values) -> dict[fx.Node, Any]:
    """Run nodes of a graph in their order, from the values of what they read; the values of all of them."""
    known = dict(values)

    def load(node: fx.Node) -> Any:
        if node not in known and node.op == "get_attr":
            known[node] = attribute_of(node)
        return known[node]

    for node in nodes:
        args, kwargs = map_arg(node.args, load), map_arg(node.kwargs, load)
        if node.op == "call_module":
            known[node] = model.get_submodule(str(node.target))(*args, **kwargs)
        elif node.op == "call_method":
            known[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            function: Callable[..., Any] = node.target  # type: ignore[assignment]
            known[node] = function(*args, **kwargs)
    return known


def cached_inputs(
    model: fx.GraphModule, data: Data, limit: int, *, most: int | None = None
) -> tuple[ActivationCache, ActivationCache]:
    """Two caches, for the float and the quantized network, that hold the samples as the values of the graph's inputs.

    Of more than `most` samples so many are taken, at even distances. Raises CalibrationError for unfit data.
    """
    found = list(batches(data))
    samples = sum(batch.size for batch in found)
    if most is not None and samples > most:
        found, samples = _evenly(found, samples, most), most
    places = [n for n in model.graph.nodes if n.op == "placeholder"]
    caches = ActivationCache(samples, limit // 2), ActivationCache(samples, limit // 2)
    start = 0
    for batch in found:
        if len(batch.inputs) != len(places):
            raise CalibrationError(f"the network takes {len(places)} inputs, the data has {len(batch.inputs)}")
        for cache in caches:
            for node, x in zip(places, batch.inputs, strict=True):
                cache.write(node, start, batch.size, x)
        start += batch.size
    return caches


def _evenly(found: list[Batch], samples: int, most: int) -> list[Batch]:
    """`most` of the samples, at even distances."""
    wanted, start, chosen = torch.arange(most) * samples // most, 0, []
    for batch in found:
        here = wanted[(wanted >= start) & (wanted < start + batch.size)] - start
        start += batch.size
        if len(here):
            chosen.append(Batch(tuple(x[here] for x in batch.inputs)))
    return chosen


def run_segment(model: fx.GraphModule, part: Segment, cache: ActivationCache) -> None:
    """Run a segment over all samples and keep what is read behind it."""
    for index in cache.batches():
        values = execute(model, part.nodes, cache.batch(part.inputs, index))
        for node in part.outputs:
            cache.write(node, int(index[0]), len(index), values[node])


@contextmanager
def slots_of(model: fx.GraphModule, nodes: Iterable[fx.Node], mode: Literal["float", "quantize"]) -> Iterator[None]:
    """Let all slots of these nodes quantize, or none; afterwards each is in the mode it had."""
    called = [model.get_submodule(str(n.target)) for n in nodes if n.op == "call_module"]
    held = [s for m in called for s in (m if isinstance(m, Slot) else weight_slot(m),) if s is not None]
    with slots_in_mode(held, mode):
        yield


@torch.no_grad()
def segment_error(model: fx.GraphModule, part: Segment, exact: ActivationCache, rounded: ActivationCache) -> float:
    """Noise power over signal power of a segment's result, quantized as it will be."""
    noise = signal = 0.0
    with slots_of(model, part.nodes, "quantize"):
        for index in exact.batches():
            y = execute(model, part.nodes, rounded.batch(part.inputs, index))[part.result]
            target = exact.batch((part.result,), index)[part.result]
            noise += float((y - target).double().square().sum())
            signal += float(target.double().square().sum())
    return noise / signal if signal else noise

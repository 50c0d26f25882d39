"""Encodings: the grids of a file's tensors by name, the common ground of the vendors' formats."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from isobit.core.errors import UnsupportedError
from isobit.export.octaves import Octaves

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Ops whose second input is a weight and whose third is a bias."""


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Encoding:
    """The grid of a tensor: k · scale for whole k in lowest..highest.

    Each format stores k under another zero point. Shapes: scale (float32), lowest and highest (int32) are () or
    (channels,), the channels those of `axis`. `non_negative` says that the tensor comes from a ReLU, so that levels
    below zero are never used; `symmetric` that the format has no zero point.
    """

    bits: int
    symmetric: bool
    scale: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    axis: int = 0
    non_negative: bool = False

    def integers(self, x: np.ndarray) -> np.ndarray:
        """k = clip(rint(x / scale), lowest, highest), int32, of the shape of x: half to even, a float32 division."""
        kind = np.float32 if self.bits <= 16 else np.float64
        scale, low, high = (self._along(v, x.ndim) for v in (self.scale, self.lowest, self.highest))
        k: np.ndarray = np.clip(np.rint(x.astype(kind) / scale.astype(kind)), low, high).astype(np.int32)
        return k

    def _along(self, values: np.ndarray, dims: int) -> np.ndarray:
        return values.reshape([-1 if i == self.axis else 1 for i in range(dims)]) if values.ndim else values

    @property
    def narrow(self) -> bool:
        """Whether the lowest of 2^bits levels is left out."""
        return bool((self.highest.astype(np.int64) - self.lowest == (1 << self.bits) - 2).all())

    @property
    def offset(self) -> np.ndarray:
        """The k of the unsigned integer 0: x = (q + offset) · scale for q in 0..2^bits - 1. int32."""
        found: np.ndarray = self.lowest - int(self.narrow)
        return found


def from_offset(
    *, bits: int, scale: object, offset: object, symmetric: bool, axis: int = 0, narrow: bool = False
) -> Encoding:
    """The encoding of 2^bits levels from `offset` on, less the first where it is `narrow`.

    >>> from_offset(bits=8, scale=0.5, offset=-3, symmetric=False).highest.item()
    252
    """
    scales = np.asarray(scale, np.float32)
    first = np.broadcast_to(np.asarray(offset, np.int64), scales.shape)
    last = (first + (1 << bits) - 1).astype(np.int32)
    lowest = (first + int(narrow)).astype(np.int32)
    return Encoding(bits=bits, symmetric=symmetric, scale=scales, lowest=lowest, highest=last, axis=axis)


def symmetric_bytes(scale: object, *, lowest: int, axis: int = 0) -> Encoding:
    """Signed bytes without a zero point, from -128 or -127."""
    return from_offset(bits=8, scale=scale, offset=-128, symmetric=True, axis=axis, narrow=lowest == -127)


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Encodings:
    """The grids of activations and weights, by the names of the tensors."""

    activations: Mapping[str, Encoding]
    weights: Mapping[str, Encoding]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class ReadBack:
    """What a reader finds in a file: the grids, and the integers k that they make of the weights and biases in it.

    `activations` holds what the format states: all tensors, or the inputs of layers alone.
    """

    activations: Mapping[str, Encoding | Octaves]
    weights: Mapping[str, Encoding | Octaves]
    integers: Mapping[str, np.ndarray] = field(default_factory=dict)


class Layer(NamedTuple):
    """An op with a weight among the constants of the file, by the names of its tensors."""

    node: ir.Node
    x: str
    weight: str
    bias: str | None


def layers(graph: ir.Graph) -> Iterator[Layer]:
    """Every op with a constant weight, in the order of the graph."""
    for node in graph:
        names = [None if value is None else str(value.name) for value in node.inputs]
        if node.op_type in WEIGHTED and len(names) > 1 and names[1] in graph.initializers:
            bias = names[2] if len(names) > 2 and names[2] in graph.initializers else None
            yield Layer(node, str(names[0]), str(names[1]), bias)


def with_axes(graph: ir.Graph, weights: Mapping[str, Encoding]) -> dict[str, Encoding]:
    """Encodings of weights whose format does not say which axis holds the output channels: the op does."""
    axes = {layer.weight: int(layer.node.op_type == "ConvTranspose") for layer in layers(graph)}
    return {name: replace(encoding, axis=axes.get(name, 0)) for name, encoding in weights.items()}


def array(graph: ir.Graph, name: str) -> np.ndarray:
    """A constant of the file."""
    tensor = graph.initializers[name].const_value
    assert tensor is not None
    found: np.ndarray = tensor.numpy()
    return found


def read_integers(graph: ir.Graph, encodings: Encodings) -> ReadBack:
    """The integers that encodings make of a file's float weights; of biases, rint(b / (s_x · s_w)).

    Jacob et al. 2018, section 2.4.
    """
    integers: dict[str, np.ndarray] = {}
    for layer in layers(graph):
        weight = encodings.weights.get(layer.weight)
        if weight is None:
            continue
        integers[layer.weight] = weight.integers(array(graph, layer.weight))
        x = encodings.activations.get(layer.x)
        if layer.bias is not None and x is not None:
            step = x.scale * weight.scale
            integers[layer.bias] = np.rint(array(graph, layer.bias).astype(np.float64) / step).astype(np.int32)
    return ReadBack(activations=encodings.activations, weights=encodings.weights, integers=integers)


def bias_encodings(graph: ir.Graph, encodings: Encodings) -> dict[str, Encoding]:
    """Biases of 32 bits at s_x · s_w, for layers whose input has an encoding."""
    found: dict[str, Encoding] = {}
    for layer in layers(graph):
        x, weight = encodings.activations.get(layer.x), encodings.weights.get(layer.weight)
        if layer.bias is not None and x is not None and weight is not None:
            found[layer.bias] = from_offset(bits=32, scale=x.scale * weight.scale, offset=-(1 << 31), symmetric=True)
    return found


def check_symmetric_bytes(encodings: Encodings, *, lowest: int, what: str) -> None:
    """Raise UnsupportedError unless every tensor has 8 bits, no zero point, and levels from `lowest` to 127.

    Levels that a tensor does not use may be missing: those below zero behind a ReLU, and the lowest of a weight.
    """
    for kind, found in (("activation", encodings.activations), ("weight", encodings.weights)):
        for name, encoding in found.items():
            below = kind == "activation" and not encoding.non_negative
            fits = (encoding.highest == 127).all() and (encoding.lowest >= lowest).all()
            if encoding.bits != 8 or not fits or (below and (encoding.lowest != lowest).any()):
                levels = f"{int(encoding.lowest.min())}..{int(encoding.highest.max())} steps of {encoding.bits} bits"
                raise UnsupportedError(
                    f"{what} takes signed bytes from {lowest} to 127 without a zero point, and the {kind} {name} has "
                    f"{levels}: quantize for a target with that format"
                )

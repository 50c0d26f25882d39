"""Encodings by layer: what formats hold that name a layer's input and weight, not tensors."""

from collections.abc import Iterator
from typing import NamedTuple

import onnx_ir as ir

from isobit.export.encodings import Encoding, Layer, layers
from isobit.export.float_network import FloatNetwork


class QuantizedLayer(NamedTuple):
    """A layer whose input and weight both have an encoding."""

    layer: Layer
    name: str
    x: Encoding
    weight: Encoding


def quantized_layers(network: FloatNetwork) -> Iterator[QuantizedLayer]:
    """The layers that compute with integers, in the order of the graph."""
    found = network.encodings
    for layer in layers(network.program.graph):
        if layer.x in found.activations and layer.weight in found.weights:
            yield QuantizedLayer(layer, str(layer.node.name), found.activations[layer.x], found.weights[layer.weight])


def layer_names(graph: ir.Graph) -> dict[str, Layer]:
    """The layers of a file by name."""
    return {str(layer.node.name): layer for layer in layers(graph)}


def group(layer: Layer) -> int:
    """The number of groups of a convolution, 1 for others."""
    return layer.node.attributes["group"].as_int() if "group" in layer.node.attributes else 1

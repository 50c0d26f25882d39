"""NNIE's parameters as JSON beside a float network: the largest value of each input of a layer.

{"nnie": {"gfpq_param_dict": {layer: [c, ...]}}} has one c for each quantized input of a layer, in their order. Levels
are 0 and ± 2^((z + k) / 16) for k to 127 with z = 16 · log2 c - 127: NNIE takes a c of which 16 · log2 c is whole. It
rounds weights by itself, with the c next to the largest of a layer's; they lie on such a grid in net.onnx, so that they
stay as they are. Ops that move or bend values have no entry, nor have global pools and grouped convolutions: a note
names quantized tensors that no other op reads.

Sources: https://mqbench.readthedocs.io/en/latest/user_guide/hardware/nnie.html (the levels; "it requires the clipping
value c rather than z"), and https://github.com/ModelTC/MQBench/blob/main/mqbench/deploy/deploy_nnie.py (the file, and
which ops have an entry). Assumed: that a layer goes by the name of its ONNX node. MQBench's way leads through NART's
conversion to Caffe, which was not run; there an upsampling has a second entry, for a permutation, which is not written.
"""

import math

import onnx_ir as ir

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.export.beside import to_text
from isobit.export.encodings import ReadBack, array, layers
from isobit.export.float_network import MOVES, FloatNetwork, whole_tensors
from isobit.export.octaves import Octaves, octaves_up_to
from isobit.export.per_layer import group
from isobit.export.vendor_format import Held, Text, VendorFormat

WITHOUT_ENTRY = MOVES | {"Relu", "PRelu", "Clip", "Min", "Sigmoid", "Softmax", "Mul", "GlobalAveragePool"}


def nnie() -> VendorFormat:
    """NNIE's net.json beside net.onnx in floats."""
    return VendorFormat(
        format="nnie", what="NNIE", opset=11, suffix=".json", logarithms=True, write=_parameters, read=_read
    )


def _parameters(network: FloatNetwork) -> Text:
    grouped = {str(layer.node.name) for layer in layers(network.program.graph) if group(layer) > 1}
    stated: set[str] = set()
    found: dict[str, list[float]] = {}
    whole_tensors(network, "NNIE's file")
    for node in network.program.graph:
        name = str(node.name)
        tensors = _inputs(network.program.graph, node)
        grids = [network.octaves.get(tensor) for tensor in tensors]
        clips = [grid.clip for grid in grids if grid is not None]
        if not clips or node.op_type in WITHOUT_ENTRY or name in grouped:
            continue
        if len(clips) < len(grids):
            raise UnsupportedError(
                f"{name}: NNIE's file has a value for each input of a layer, and one is not quantized"
            )
        if any((grid.bits, grid.steps) != (8, 16) for grid in grids if grid is not None):
            raise UnsupportedError(f"{name}: NNIE has 8 bits and 16 levels an octave")
        found[name] = clips
        stated.update(tensors)
    for node in reversed(list(network.program.graph)):
        if node.op_type in MOVES and str(node.outputs[0].name) in stated:
            stated.update(_inputs(network.program.graph, node))
    left = [name for name in network.octaves if name not in stated | network.moved]
    notes = [f"NNIE's file has no place for the grids of {', '.join(left)}"] if left else []
    return to_text({"nnie": {"gfpq_param_dict": found}}), notes


def _read(held: Held) -> ReadBack:
    """The grids of layers' inputs and weights, and the indices of the weights' levels."""
    clips = held.json()["nnie"]["gfpq_param_dict"]
    activations: dict[str, Octaves] = {}
    for node in held.graph:
        given = clips.pop(str(node.name), None)
        names = _inputs(held.graph, node) if given else []
        if given and len(given) != len(names):
            raise ArtifactError(f"{node.name} has {len(names)} inputs, the file beside {held.path} {len(given)} values")
        activations |= {name: _grid(c, name) for name, c in zip(names, given or [], strict=True)}
    if clips:
        raise ArtifactError(f"the file beside {held.path} has values for {next(iter(clips))!r}, which is no layer")
    floats = {layer.weight: array(held.graph, layer.weight) for layer in layers(held.graph) if layer.x in activations}
    weights = {name: octaves_up_to(w) for name, w in floats.items()}
    return ReadBack(
        activations=activations, weights=weights, integers={n: weights[n].integers(w) for n, w in floats.items()}
    )


def _inputs(graph: ir.Graph, node: ir.Node) -> list[str]:
    """The tensors that a node reads, without constants."""
    return [str(value.name) for value in node.inputs if value is not None and value.name not in graph.initializers]


def _grid(clip: float, name: str) -> Octaves:
    parameter = round(16 * math.log2(clip)) if clip > 0 else 0
    grid = Octaves(parameter=parameter)
    if clip != grid.clip:
        raise ArtifactError(f"{name}: NNIE takes values of which 16 · log2 is whole, not {clip}")
    return grid

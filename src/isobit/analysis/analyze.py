"""The analysis of a quantized network: for each layer its cost, its error and the values of its tensors."""

from dataclasses import dataclass

from torch import Tensor, fx

from isobit.analysis.cost import bits_of, cost
from isobit.analysis.distribution import Distribution, activation_distributions, weight_distribution
from isobit.analysis.layer_error import isolated as isolated_noise
from isobit.analysis.layer_error import pieces, sensitivity, side_by_side, tensors_in
from isobit.analysis.layers import Layer, quantized_layers
from isobit.analysis.modes import measured
from isobit.analysis.noise import Noise
from isobit.core.batches import Data
from isobit.core.memory import freed_memory_stays
from isobit.core.progress import Progress, silent
from isobit.core.records import LayerRecord
from isobit.graph.slots import Slot


@dataclass(frozen=True, eq=False, kw_only=True)
class Measurement:
    """What a pass over the data found: noise by layer, distributions by slot's node and, for weights, by layer.

    `output` is the noise of the network's outputs when everything is quantized.
    """

    output: Noise
    accumulated: dict[str, Noise]
    isolated: dict[str, Noise]
    activations: dict[fx.Node, Distribution]
    weights: dict[str, Distribution]


@freed_memory_stays()
def analyze(
    model: fx.GraphModule, data: Data, *, samples: int = 32, isolated: bool = True, progress: Progress = silent
) -> tuple[LayerRecord, ...]:
    """One record for each layer that computes with integers, in network order.

    Accumulated error and distributions are measured over all of `data`, the isolated error over its first `samples`:
    it runs the network behind each layer once per 16 of them (`isolated=False` leaves it out). A weight and the
    activation that a layer writes are its tensors; the first reader of a network's input has that one too.

    Raises CalibrationError for data that does not fit, SettingError for a model without quantizers.
    """
    layers = quantized_layers(model)
    return records(model, layers, measure(model, layers, data, samples=samples if isolated else 0, progress=progress))


@freed_memory_stays()
def measure(
    model: fx.GraphModule, layers: tuple[Layer, ...], data: Data, *, samples: int = 32, progress: Progress = silent
) -> Measurement:
    """All that needs data; with `samples` 0 no layer is quantized alone."""
    accumulated, output = {layer.name: Noise() for layer in layers}, Noise()
    outputs = {layer.output: layer.name for layer in layers}
    activations = activation_distributions(model, layers)
    with measured(model) as active:
        for done, batch in enumerate(pieces(data), start=1):
            for node, x, x_hat in side_by_side(model, batch, active):
                if node in outputs and isinstance(x, Tensor) and isinstance(x_hat, Tensor):
                    accumulated[outputs[node]].add(x, x_hat)
                if node in activations and isinstance(x, Tensor):
                    activations[node].see(x)
            for y, y_hat in zip(tensors_in(x), tensors_in(x_hat), strict=True):
                output.add(y, y_hat)
            progress("comparing layers", done, None)
    alone = isolated_noise(model, data, samples=samples, progress=progress) if samples > 0 else {}
    weights = {layer.name: found for layer in layers if (found := weight_distribution(layer)) is not None}
    return Measurement(output=output, accumulated=accumulated, isolated=alone, activations=activations, weights=weights)


def records(
    model: fx.GraphModule, layers: tuple[Layer, ...], measurement: Measurement | None = None
) -> tuple[LayerRecord, ...]:
    """One record for each layer; without a measurement, costs and formats alone."""
    costs = {op.name: op for op in cost(model).ops}
    shares = {} if measurement is None else sensitivity(measurement.isolated)
    shown: set[fx.Node] = set()
    found = []
    for layer in layers:
        noise = None if measurement is None else measurement.accumulated[layer.name]
        alone = None if measurement is None else measurement.isolated.get(layer.name)
        of = costs.get(layer.name)
        found.append(
            LayerRecord(
                name=layer.name,
                op=layer.label,
                parameters=of.parameters if of else 0,
                macs=of.macs if of else 0,
                weight_bits=bits_of(layer.weight) if layer.weight is not None else 32,
                activation_bits=_activation_bits(model, layer),
                sqnr_db=noise.sqnr_db if noise else None,
                cosine=noise.cosine if noise else None,
                isolated_db=alone.sqnr_db if alone else None,
                isolated_cosine=alone.cosine if alone else None,
                sensitivity=shares.get(layer.name),
                tensors=tuple(d.record() for d in _tensors(layer, measurement, shown)),
            )
        )
    return tuple(found)


def _activation_bits(model: fx.GraphModule, layer: Layer) -> int:
    """The width of what a layer reads, of what it writes where it reads no quantized tensor by itself."""
    read = [bits_of(edge.slot) for edge in layer.inputs]
    if read:
        return max(read)
    module = model.get_submodule(str(layer.output.target)) if layer.output.op == "call_module" else None
    return bits_of(module) if isinstance(module, Slot) else 32


def _tensors(layer: Layer, measurement: Measurement | None, shown: set[fx.Node]) -> list[Distribution]:
    """A layer's weight, the quantized tensors from outside that no layer before it showed, and what it writes."""
    if measurement is None:
        return []
    nodes = [node for node in (*(edge.origin for edge in layer.inputs), layer.output) if node not in shown]
    shown.update(nodes)
    activations = [measurement.activations[node] for node in nodes if node in measurement.activations]
    weight = measurement.weights.get(layer.name)
    return [*([] if weight is None else [weight]), *activations]

"""Error per layer: accumulated over the network, and of each layer alone.

PPQ calls them graphwise and layerwise analysis (https://github.com/openppl-public/ppq). The float network is the
prepared one with its quantizers switched off: batch norm is folded and biases are rounded, so that what is measured is
the rounding of weights and activations alone.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from isobit.analysis.layers import Layer, quantized_layers
from isobit.analysis.modes import measured, slots_in_mode
from isobit.analysis.noise import Noise
from isobit.core.batches import Batch, Data, batches
from isobit.core.errors import CalibrationError
from isobit.core.progress import Progress, silent
from isobit.graph.slots import Slot, weight_slot

TOGETHER = 16
"""Samples that run at once: it bounds the memory."""


def accumulated(model: fx.GraphModule, data: Data, *, progress: Progress = silent) -> dict[str, Noise]:
    """What each layer's output loses when the whole network is quantized, by the layer's name.

    Compared are the values that the next layer reads, behind the layer's quantizer where it has one, with those of
    the float network on the same inputs. Raises CalibrationError for data that does not fit or a model that is not
    calibrated.
    """
    layers = quantized_layers(model)
    found = {layer.name: Noise() for layer in layers}
    by_node = {layer.output: found[layer.name] for layer in layers}
    with measured(model) as active:
        for done, batch in enumerate(pieces(data), start=1):
            for node, x, x_hat in side_by_side(model, batch, active):
                if node in by_node and isinstance(x, Tensor) and isinstance(x_hat, Tensor):
                    by_node[node].add(x, x_hat)
            progress("comparing layers", done, None)
    return found


def isolated(
    model: fx.GraphModule, data: Data, *, samples: int | None = 32, progress: Progress = silent
) -> dict[str, Noise]:
    """What the network's output loses when one layer alone is quantized, by the layer's name.

    A layer is quantized by rounding its weight and the activations that it reads, for itself alone: other readers of
    the same tensor keep the float values. The rounding of a network's output counts to the layer that computes it.
    Layers that only move integers round nothing and are left out. The network behind each layer runs once for every
    16 samples, so `samples` limits the work (None for all).
    """
    layers = {x.node: x for x in quantized_layers(model) if x.results or not x.moves}
    found = {layer.name: Noise() for layer in layers.values()}
    parts = list(pieces(data, samples=samples))
    done, total = 0, len(parts) * len(layers)
    with measured(model) as active:
        for batch in parts:
            expected = tensors_in(_finish(model, _start(model, batch)))
            walk = _start(model, batch)
            for node in model.graph.nodes:
                if (layer := layers.get(node)) is not None:
                    outputs = tensors_in(_alone(model, walk, layer, active))
                    for x, x_hat in zip(expected, outputs, strict=True):
                        found[layer.name].add(x, x_hat)
                    done += 1
                    progress("quantizing one layer at a time", done, total)
                _step(walk, node)
    return found


def sensitivity(noises: Mapping[str, Noise]) -> dict[str, float]:
    """The share of all isolated noise power that each layer causes; all 0 where there is no noise at all."""
    total = sum(noise.noise for noise in noises.values())
    return {name: noise.noise / total if total > 0.0 else 0.0 for name, noise in noises.items()}


def ranking(noises: Mapping[str, Noise]) -> list[str]:
    """The names of the layers, the one with the lowest SQNR first."""
    return sorted(noises, key=lambda name: noises[name].sqnr_db)


def pieces(data: Data, *, samples: int | None = None) -> Iterator[Batch]:
    """The first `samples` of the data, at most `TOGETHER` at a time."""
    left = samples
    for batch in batches(data, name="analysis data"):
        for start in range(0, batch.size, TOGETHER):
            if left is not None and left <= 0:
                return
            stop = min(start + TOGETHER, batch.size, start + (batch.size if left is None else left))
            part = tuple(x[start:stop] if x.dim() and len(x) == batch.size else x for x in batch.inputs)
            yield Batch(part, None if batch.labels is None else batch.labels[start:stop])
            left = None if left is None else left - (stop - start)


def side_by_side(
    model: fx.GraphModule, batch: Batch, active: frozenset[Slot]
) -> Iterator[tuple[fx.Node, object, object]]:
    """Run the float and the quantized network node by node; yields each node with its two values.

    `active` are the slots that quantize, all of which pass values through now (see `measured`). Only the values
    that are still needed are kept.
    """
    floats, quantized = _start(model, batch), _start(model, batch)
    for node in model.graph.nodes:
        x = _step(floats, node)
        with slots_in_mode(_slots_of(model, node) & active, "quantize"):
            x_hat = _step(quantized, node)
        yield node, x, x_hat


def tensors_in(outputs: object) -> list[Tensor]:
    """The floating-point tensors of a network's outputs."""
    return [y for y in pytree.tree_leaves(outputs) if isinstance(y, Tensor) and y.is_floating_point()]


def _start(model: fx.GraphModule, batch: Batch) -> fx.Interpreter:
    walk = fx.Interpreter(model)
    walk.args_iter = iter(model.graph.process_inputs(*batch.inputs))
    return walk


def _step(walk: fx.Interpreter, node: fx.Node) -> object:
    """Run one node and forget what nothing reads any more."""
    try:
        value: object = walk.run_node(node)
    except (RuntimeError, TypeError, ValueError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CalibrationError(f"the network does not take the analysis data, at {node.name}: {text}") from error
    walk.env[node] = value
    for old in walk.user_to_last_uses.get(node, ()):
        walk.env.pop(old, None)
    return value


def _finish(model: fx.GraphModule, walk: fx.Interpreter) -> object:
    """Run all nodes that have no value yet and return the outputs."""
    return [_step(walk, node) for node in model.graph.nodes][-1]


def _alone(model: fx.GraphModule, walk: fx.Interpreter, layer: Layer, active: frozenset[Slot]) -> object:
    """The network's outputs with one layer quantized, from where `walk` stands, which is left as it is."""
    fork = fx.Interpreter(model)
    fork.env = dict(walk.env)
    fork.args_iter = walk.args_iter
    for edge in layer.inputs:
        if edge.slot in active:
            fork.env[edge.tensor] = edge.slot.quantizer(walk.env[edge.tensor])
    weight = {layer.weight} if layer.weight is not None else set()
    with slots_in_mode(weight & active, "quantize"):
        value = fork.run_node(layer.node)
    fork.env = {**walk.env, layer.node: value}
    behind = list(model.graph.nodes)
    behind = behind[behind.index(layer.node) + 1 :]
    for node in behind[:-1]:
        _step(fork, node)
    for edge in layer.results:
        if edge.slot in active:
            fork.env[edge.tensor] = edge.slot.quantizer(fork.env[edge.tensor])
    return _step(fork, behind[-1])


def _slots_of(model: fx.GraphModule, node: fx.Node) -> set[Slot]:
    """The slot that a node is, or that of its weight."""
    module: nn.Module | None = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, Slot):
        return {module}
    slot = None if module is None else weight_slot(module)
    return set() if slot is None else {slot}

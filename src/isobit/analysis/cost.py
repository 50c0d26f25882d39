"""Cost: parameters, multiply-accumulates, bit operations and bytes of each op of a captured network."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from isobit.analysis.layers import quantized_layers
from isobit.core.errors import UnsupportedError
from isobit.core.grid import Float16
from isobit.core.qparams import DynamicRange, QParams
from isobit.graph.captured import tensor_at
from isobit.graph.insert import preparation, slots
from isobit.graph.names import names
from isobit.graph.slots import Slot, weight_slot
from isobit.graph.tensors import tensors_of

FLOAT_BITS = 32
"""Bits of an operand that is not quantized."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpCost:
    """What one op costs per sample. A parameter that several ops share counts at the first.

    `activation_bits` is the width of the activation that it reads; a matrix product of two activations has no
    weight, and its second operand takes the place of one in `bitops` = macs · weight bits · activation bits.
    """

    name: str
    op: str
    parameters: int
    macs: int
    weight_bits: int
    activation_bits: int
    bitops: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The ops that have parameters or multiply-accumulates, in network order, and the size of the network in bytes.

    `float_bytes` are parameters and floating-point buffers; `quantized_bytes` are weights packed at their bits,
    biases at theirs, a float32 scale and a zero point of one byte for each scale, and what stays in float.
    """

    ops: tuple[OpCost, ...]
    float_bytes: int
    quantized_bytes: int

    @property
    def parameters(self) -> int:
        """All parameters of the network that the graph uses."""
        return sum(op.parameters for op in self.ops)

    @property
    def macs(self) -> int:
        """All multiply-accumulates per sample: of convolutions, linear layers, matrix products and attention."""
        return sum(op.macs for op in self.ops)

    @property
    def bitops(self) -> int:
        """All bit operations per sample: macs · weight bits · activation bits, 32 where it is float."""
        return sum(op.bitops for op in self.ops)


def cost(model: fx.GraphModule) -> Cost:
    """Count a captured network, prepared or not.

    Raises UnsupportedError for a graph without shapes, which only a capture by torch.export has.

    >>> from isobit.graph.capture import capture
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10))
    >>> found = cost(capture(net, torch.randn(2, 3, 4, 4)))
    >>> found.parameters, found.macs
    (1514, 4736)
    """
    tensors, shown = tensors_of(model), names(model.graph)
    bits = _operand_bits(model)
    batch, counted = _batch(model), set[int]()
    ops = []
    for node in model.graph.nodes:
        parameters = sum(p.numel() for p in _parameters(model, node) if not _seen(p, counted))
        macs = _macs(model, node, tensors.kinds[node]) // batch
        if parameters or macs:
            weight, activation = bits.get(node, (FLOAT_BITS, FLOAT_BITS))
            ops.append(
                OpCost(
                    name=shown[node],
                    op=tensors.kinds[node],
                    parameters=parameters,
                    macs=macs,
                    weight_bits=weight,
                    activation_bits=activation,
                    bitops=macs * weight * activation,
                )
            )
    float_bytes, saved = _float_bytes(model), _saved_bytes(model)
    return Cost(ops=tuple(ops), float_bytes=float_bytes, quantized_bytes=float_bytes - saved)


def _operand_bits(model: fx.GraphModule) -> dict[fx.Node, tuple[int, int]]:
    """(weight or second operand, activation) bits of the ops that compute with integers."""
    if "preparation" not in model.meta:
        return {}
    found: dict[fx.Node, tuple[int, int]] = {}
    for layer in quantized_layers(model):
        read = [bits_of(edge.slot) for edge in layer.inputs] or [FLOAT_BITS]
        if layer.weight is not None:
            found[layer.node] = (bits_of(layer.weight), max(read))
        elif layer.kind == "matmul":
            found[layer.node] = (read[-1], read[0])
    return found


def bits_of(slot: Slot) -> int:
    """The width of what a slot makes."""
    bits: int = slot.quantizer.scheme.bits  # type: ignore[union-attr, assignment]
    return bits


# -- parameters and bytes


def _parameters(model: fx.GraphModule, node: fx.Node) -> Iterator[Tensor]:
    """The parameters that a node reads; those of a quantizer are none of the network's."""
    if node.op == "get_attr":
        found = tensor_at(model, str(node.target))
        if isinstance(found, nn.Parameter):
            yield found
    elif node.op == "call_module" and not isinstance(module := model.get_submodule(str(node.target)), Slot):
        quantizers = {p for s in module.modules() if isinstance(s, Slot) for p in s.parameters()}
        yield from (p for p in module.parameters() if p not in quantizers)


def _seen(tensor: Tensor, counted: set[int]) -> bool:
    """Whether a tensor was counted before; now it is."""
    before = id(tensor) in counted
    counted.add(id(tensor))
    return before


def _float_bytes(model: fx.GraphModule) -> int:
    """The bytes of all parameters and floating-point buffers that the graph uses."""
    counted: set[int] = set()
    total = 0
    for node in model.graph.nodes:
        for tensor in (*_parameters(model, node), *_buffers(model, node)):
            if not _seen(tensor, counted):
                total += tensor.numel() * tensor.element_size()
    return total


def _buffers(model: fx.GraphModule, node: fx.Node) -> Iterator[Tensor]:
    if node.op != "call_module" or isinstance(module := model.get_submodule(str(node.target)), Slot):
        return
    own = {b for s in module.modules() if isinstance(s, Slot) for b in s.buffers()}
    yield from (b for b in module.buffers() if b.is_floating_point() and b not in own)


def _saved_bytes(model: fx.GraphModule) -> int:
    """How many bytes quantization saves: those of weights and biases, less those of scales and zero points."""
    if "preparation" not in model.meta:
        return 0
    profile = preparation(model).profile
    bias_bits = 16 if profile.ranges == "cast" else profile.bias_bits or FLOAT_BITS
    saved = 0
    for layer in model.modules():
        if (slot := weight_slot(layer)) is None:
            continue
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        saved += weight.numel() * weight.element_size() - math.ceil(weight.numel() * bits_of(slot) / 8)
        if isinstance(bias, Tensor):
            saved += bias.numel() * (bias.element_size() - bias_bits // 8)
    return saved - sum(_scale_bytes(slot) for slot in slots(model))


def _scale_bytes(slot: Slot) -> int:
    """A float32 scale and a zero point of one byte for each scale; nothing for one that is computed at run time."""
    if slot.mode != "quantize":
        return 0
    grid: QParams | DynamicRange = slot.grid()
    return 0 if isinstance(grid, DynamicRange) or isinstance(grid.scheme.grid, Float16) else 5 * grid.scale.numel()


# -- multiply-accumulates


def _macs(model: fx.GraphModule, node: fx.Node, kind: str) -> int:
    if kind in ("conv", "linear", "conv_transpose"):
        weight = _weight(model, node)
        if weight is None:
            return 0
        if kind == "linear":
            return math.prod(_sizes(node)) * weight.shape[-1]
        positions = _sizes(node if kind == "conv" else node.all_input_nodes[0])
        return positions[0] * math.prod(positions[2:]) * weight.numel()
    if kind == "matmul":
        operands = [_sizes(x) for x in pytree.tree_leaves(node.args) if isinstance(x, fx.Node)]
        if isinstance(node.args[0], str):
            return _einsum(node.args[0], operands)
        return math.prod(_sizes(node)) * operands[-2][-1]
    if kind == "attention":
        query, key, value = (_sizes(x) for x in node.args[:3] if isinstance(x, fx.Node))
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return 0


def _weight(model: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The weight of a layer, also of one whose weight is an operand of a function."""
    if node.op == "call_module":
        found = model.get_submodule(str(node.target)).weight
        return found if isinstance(found, Tensor) else None
    operand = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    value = operand.meta.get("val") if isinstance(operand, fx.Node) else None
    return value if isinstance(value, Tensor) else None


def _einsum(equation: str, operands: list[list[int]]) -> int:
    """The product of the sizes of all indices, as many multiplications as one sum over them has terms.

    >>> _einsum("bhqd,bhkd->bhqk", [[1, 2, 3, 4], [1, 2, 5, 4]])
    120
    """
    lengths: dict[str, int] = {}
    more = 1
    for term, sizes in zip(equation.replace(" ", "").split("->")[0].split(","), operands, strict=True):
        before, _, after = term.partition("...")
        rest = len(sizes) - len(before) - len(after)
        lengths |= dict(zip(before, sizes, strict=False))
        lengths |= dict(zip(after, sizes[len(sizes) - len(after) :], strict=True))
        more = max(more, math.prod(sizes[len(before) : len(before) + rest]))
    return math.prod(lengths.values()) * more


def _batch(model: fx.GraphModule) -> int:
    """The samples that the graph's shapes stand for: 1 where the batch is a symbol, else its fixed size."""
    values = [node.meta.get("val") for node in model.graph.nodes if node.op == "placeholder"]
    sizes = [value.shape[0] for value in values if isinstance(value, Tensor) and value.dim()]
    return sizes[0] if sizes and isinstance(sizes[0], int) else 1


def _sizes(node: fx.Node) -> list[int]:
    """The shape of a tensor, with 1 for the symbol of the batch."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        raise UnsupportedError(f"the graph has no shape at {node.name}: only a capture by torch.export has them")
    return [_at_one(size) for size in value.shape]


def _at_one(size: int | torch.SymInt) -> int:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))

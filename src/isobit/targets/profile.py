"""Profile: a hardware target as data. No code asks which target it is; it reads these fields."""

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from isobit.core.arithmetic import Arithmetic
from isobit.core.errors import SettingError
from isobit.core.granularity import PerGroup
from isobit.core.scheme import Scheme
from isobit.targets.form import DequantizeLinear, Form

HARDWARE_TABLE = (
    'hardware table of the talk "Deployable QAT" by the authors of MQBench (2021-09-09; their tool: '
    "https://github.com/ModelTC/MQBench)"
)
"""The source of targets of which nothing more is public."""

GROUP_SIZES = (16, 32, 64, 128)
"""How many weights share a scale, where groups do: what engines have kernels for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Which tensors carry a quantizer, by the kinds of the ops around them (the kinds of `isobit.graph.ops`).

    - `inputs`: the activation inputs of these kinds are quantized.
    - `outputs`: the outputs of these kinds are quantized, at the end of what fuses with them.
    - `shared`: inputs and output of these kinds have one scale (concat, pooling, reshape): the op moves or
      selects integers.
    - `every_consumer`: all readers of a quantized tensor see the quantized values; else only the kinds of
      `inputs` do, and a residual branch stays in float.
    - `conv_feeds_add`: the engine adds a residual to the accumulator of the convolution, so that the tensor
      between the two is never rounded.
    - `network_output`: the last tensor is quantized too.
    - `float_readers`: an output that float ops alone read, such as a GELU's input, is quantized too; else the engine
      hands it on from the accumulator.
    - `constant_operands`: what no input of the network reaches, such as position embeddings, is quantized where an
      op adds it; else the engine adds it in float, and the sum is rounded once.
    - `attention_products`: the two matrix products inside attention are ops of their own, of the kind matmul; else
      attention is one op.
    """

    inputs: frozenset[str]
    outputs: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    every_consumer: bool = True
    conv_feeds_add: bool = False
    network_output: bool = False
    constant_operands: bool = True
    float_readers: bool = True
    attention_products: bool = False

    @property
    def kinds(self) -> frozenset[str]:
        """Every kind that may compute with integers."""
        return self.inputs | self.outputs | self.shared


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """A target. `source` says where its settings come from; `engines` where its files can be verified here.

    `fusions` are pairs (kind, kind that follows): the tensor between them is never rounded. `edge_bits` is the width of
    the weight and input of the first and the last layer, None for no exception. `signed_bytes` says that a file for it
    holds signed activations as signed bytes; else as unsigned ones, 2^(bits-1) higher. `bias_bits` is the width of a
    bias, whose scale is that of input times weight; None keeps it in float. `fold_bn` merges batch normalization into
    the convolution before anything is quantized. `offset_weights` says that the engine holds weights of fewer than 8
    bits in bytes, so that their levels may be any 2^bits integers in a row: a zero point, taken off in the file, costs
    nothing. `ranges` says where those of activations come from: from calibration, from each input while the network
    runs, or from nowhere, since activations stay in float, or, with weights and biases, are cast to a float format that
    needs none. `form` is what a file multiplies weights with. `formats` are the names of the exporters that write
    what its tools take, the default first. `widths` are those that weights and activations may have.

    `assumed` says what in the profile `source` does not. `own_engine` is the one of `engines` that the target is; where
    it is None, the others stand in for it: they show that the file holds what the simulation computes, while the
    target's own `arithmetic` is run by the integer reference alone.
    """

    name: str
    vendor: str
    source: str
    weight: Scheme
    activation: Scheme
    placement: Placement
    fusions: frozenset[tuple[str, str]]
    arithmetic: Arithmetic
    engines: tuple[str, ...]
    own_engine: str | None = None
    assumed: str = ""
    widths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    bias_bits: int | None = 32
    edge_bits: int | None = 8
    signed_bytes: bool = False
    fold_bn: bool = True
    offset_weights: bool = False
    ranges: Literal["calibrated", "dynamic", "none", "cast"] = "calibrated"
    form: Form = DequantizeLinear()
    formats: tuple[str, ...] = ("onnx",)

    @property
    def activations(self) -> str:
        """The format of activations in words: `u8 asymmetric per-tensor, dynamic`, or `float`."""
        dynamic = ", dynamic" if self.ranges == "dynamic" else ""
        return "float" if self.ranges == "none" else f"{self.activation}{dynamic}"

    def with_bits(self, *, weight: int | None = None, activation: int | None = None) -> "Profile":
        """The same target at other widths; the first and last layer keep `edge_bits`."""
        for bits in (weight, activation):
            if bits is not None and (isinstance(bits, bool) or bits not in self.widths):
                raise SettingError(f"{self.name} computes with {in_words(self.widths)} bits, got {bits!r}")
        width = weight or self.weight.bits
        return replace(
            self,
            weight=replace(self.weight, bits=width, narrow=self.weight.narrow and width > 1),
            activation=replace(self.activation, bits=activation or self.activation.bits),
        )

    def with_groups(self, *, size: int | None = None, symmetric: bool | None = None) -> "Profile":
        """The same target with weights in groups of that size, without or with zero points; None leaves it as it is.

        Without groups, `symmetric` weights below 8 bits have no zero point per channel.
        """
        if size is None and symmetric is None:
            return self
        if size is None and self.offset_weights:
            return replace(self, offset_weights=not symmetric)
        if not isinstance(self.weight.granularity, PerGroup):
            raise SettingError(
                f"{self.name} has no groups of weights: leave group_size and symmetric_weights out, or use a target "
                "with scales per group, such as onnxruntime-weights"
            )
        if size is not None and (isinstance(size, bool) or size not in GROUP_SIZES):
            raise SettingError(f"group_size has to be one of {', '.join(map(str, GROUP_SIZES))}, got {size!r}")
        plain = self.weight.symmetric if symmetric is None else symmetric
        groups = replace(self.weight.granularity, size=size or self.weight.granularity.size)
        return replace(self, weight=replace(self.weight, granularity=groups, symmetric=plain, signed=plain))

    def weight_scheme(self, bits: int) -> Scheme:
        """The number format of a weight of this many bits.

        A format that is `narrow`, without the level -128, has all levels at other widths: an engine holds those in
        bytes, and at 2 bits the lowest is a quarter of them.
        """
        few = bits < 8
        return replace(
            self.weight,
            bits=bits,
            narrow=self.weight.narrow and not few,
            symmetric=self.weight.symmetric and not (self.offset_weights and few),
        )


def in_words(widths: tuple[int, ...]) -> str:
    """Ascending widths for a person.

    >>> in_words((1, 2, 3)), in_words((4, 8)), in_words((8,))
    ('1 to 3', '4 or 8', '8')
    """
    if len(widths) > 2 and widths == tuple(range(widths[0], widths[-1] + 1)):
        return f"{widths[0]} to {widths[-1]}"
    *others, last = map(str, widths)
    return f"{', '.join(others)} or {last}" if others else last


class Target(Protocol):
    """A module of this package: one constant, `PROFILE`."""

    PROFILE: Profile


CONV_AND_LINEAR = frozenset({"conv", "conv_transpose", "linear"})
"""The ops with weights that every target computes with integers."""

ARITHMETIC_OPS = CONV_AND_LINEAR | {"add", "matmul", "global_avg_pool", "avg_pool"}
"""Ops whose result is rounded to the grid of their output."""

MOVES = frozenset({"max_pool", "reshape", "transpose", "pad", "slice", "concat"})
"""Ops that move or select integers: what goes in and what comes out share one scale."""

ACTIVATIONS = frozenset({"relu", "relu6", "capped_relu", "clamp"})
"""Piecewise linear functions that an engine fuses into the op before."""

FUSED_ACTIVATIONS = frozenset(
    {(op, "batch_norm") for op in ("conv", "conv_transpose", "linear")}
    | {(op, act) for op in ("conv", "conv_transpose", "linear", "batch_norm", "add") for act in ACTIVATIONS}
)
"""conv-bn, conv-bn-relu, add-relu and linear-relu, each one op on every engine."""
LINEAR_INPUTS = Placement(inputs=frozenset({"linear"}), every_consumer=False)
"""Linear layers alone."""

GRAPH_1 = Placement(inputs=CONV_AND_LINEAR, every_consumer=False)
"""MQBench's graph 1: the inputs of convolutions and linear layers, nothing else."""

GRAPH_3 = Placement(inputs=ARITHMETIC_OPS, outputs=ARITHMETIC_OPS | ACTIVATIONS, shared=MOVES)
"""MQBench's graph 3: every quantizable op's output, both operands of an add and its result."""

FLOAT_OPS = ARITHMETIC_OPS | ACTIVATIONS | {
    "attention", "batch_norm", "div", "elu", "gelu", "group_norm", "hardsigmoid", "hardswish", "instance_norm",
    "interpolate", "layer_norm", "leaky_relu", "mean", "mul", "prelu", "sigmoid", "silu", "softmax", "sub", "tanh",
}  # fmt: skip
"""Everything that computes: an engine of short floats has kernels for all."""

ALL_FLOAT = Placement(inputs=FLOAT_OPS, outputs=FLOAT_OPS, shared=MOVES, network_output=True)
"""Every tensor is rounded to a short float."""

GRAPH_3_WITHOUT_MATMUL = replace(GRAPH_3, inputs=GRAPH_3.inputs - {"matmul"}, outputs=GRAPH_3.outputs - {"matmul"})
"""Graph 3 where products of two activations stay in float: engines made for convolutional networks."""

GRAPH_2 = replace(GRAPH_3, conv_feeds_add=True)
"""MQBench's graph 2: graph 3 less the operand of an add that comes straight from a convolution."""

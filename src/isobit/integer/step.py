"""One step of the interpreter: an op of a file, and the rule that it is computed by."""

from dataclasses import dataclass
from typing import Literal

from isobit.integer.model import Node
from isobit.integer.values import Format

Rule = Literal[
    "quantize", "dequantize", "constant", "integer", "to_float", "summed", "absorbed", "travel", "integers",
    "looked_up", "float",
]  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """One step of the interpreter.

    - `quantize`, `dequantize`: nodes of that kind; `constant`: a weight, already known. A quantizer `behind_product` is
      part of the kernel of a convolution or a linear layer; the file gives the floats of what is `exposed`
    - `integer`: a fused op; writes integers in `output` to the tensor `result`: what QuantizeLinear writes, or,
      where that was carried back, its dequantized view. `limits` are the levels that absorbed activations allow
    - `to_float`: integers are multiplied and the sum is dequantized, without rounding to a grid; `summed`: the tensor
      `residual` is added to it and the sum is rounded, all in one kernel, which the Add is `absorbed` by. `between` is
      the format of the sum of products alone, where the file rounds that too
    - `travel`: moves integers that keep their format; `integers`: an op on the integers themselves (Clip)
    - `looked_up`: integers are indices into a table of integers
    - `float`: all else
    """

    node: Node
    rule: Rule
    output: Format | None = None
    result: str = ""
    seen_through: bool = False
    limits: tuple[int, int] = (0, 0)
    bias: str = ""
    residual: str = ""
    between: Format | None = None
    behind_product: bool = False
    exposed: bool = False

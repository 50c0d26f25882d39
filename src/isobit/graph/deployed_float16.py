"""What a deployed network has for targets that compute with floats of 16 bits."""

from typing import final

from torch import Tensor, nn

from isobit.core.float16 import cast
from isobit.core.grid import Float16
from isobit.graph.integer_ops import cast_to_float16, from_float16


@final
class Float16Weight(nn.Module):
    """A weight and its bias as float16. An engine without such kernels makes them float32 while it loads a file."""

    q: Tensor
    bias_q: Tensor

    def __init__(self, weight: Tensor, grid: Float16, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("q", cast(weight.detach().float(), grid).half())
        if bias is not None:
            self.register_buffer("bias_q", cast(bias.detach().float(), grid).half())

    def weight(self) -> Tensor:
        """The weight's values, in float32."""
        weight: Tensor = from_float16(self.q)
        return weight

    def bias(self) -> Tensor | None:
        """The bias's values, in float32."""
        bias: Tensor | None = from_float16(self.bias_q) if "bias_q" in self._buffers else None
        return bias


@final
class Float16Quantizer(nn.Module):
    """x → float16 → x̂."""

    def __init__(self, grid: Float16) -> None:
        super().__init__()
        self.subnormals = grid.subnormals

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: any."""
        y: Tensor = cast_to_float16(x, self.subnormals)
        return y

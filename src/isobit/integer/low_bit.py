"""Products with dynamic ranges and with packed weights, as ONNX Runtime's kernels compute them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from isobit.core.packing import unpack
from isobit.core.qparams import dynamic_range
from isobit.integer.model import Node

Inputs = list[Tensor | None]


def dynamic_quantize(_: Node, inputs: Inputs) -> list[Tensor]:
    """DynamicQuantizeLinear: q = clip(rint(x / s) + z, 0, 255) with s and z of x's own range, and s and z."""
    x = _given(inputs[0])
    scale, zero_point = dynamic_range(*torch.aminmax(x))
    q = (x / scale).round_().add_(zero_point.to(x.dtype)).clamp_(0, 255)
    return [q.to(torch.uint8), scale, zero_point.to(torch.uint8)]


def matmul_integer(_: Node, inputs: Inputs) -> list[Tensor]:
    """MatMulInteger: Σ (a - z_a) (b - z_b), int32; summed in float64, which holds it exactly."""
    a, b = _given(inputs[0]).double(), _given(inputs[1]).double()
    if len(inputs) > 2 and inputs[2] is not None:
        a = a - inputs[2].double()
    if len(inputs) > 3 and inputs[3] is not None:
        b = b - inputs[3].double()
    return [(a @ b).to(torch.int32)]


def matmul_nbits(node: Node, inputs: Inputs) -> list[Tensor]:
    """com.microsoft.MatMulNBits: y = x · wᵀ + b with w = (q - z) · s; at accuracy_level 4 of rounded x.

    Shapes: x (…, K); q packed (N, K / block, bytes); s (N, K / block).
    """
    x, packed, scale = (_given(t) for t in inputs[:3])
    outputs, width, block, bits = (int(node.attributes[key]) for key in ("N", "K", "block_size", "bits"))
    groups = -(-width // block)
    q = unpack(packed.reshape(-1), bits=bits, signed=False, shape=(outputs, groups, block)).float()
    middle = torch.full((outputs, groups), 1 << (bits - 1))
    z = middle if len(inputs) < 4 or inputs[3] is None else _rows(inputs[3].reshape(outputs, -1), bits, groups)
    w = ((q - z.float()[..., None]) * scale.reshape(outputs, groups, 1)).reshape(outputs, -1)[:, :width]
    if rounds_input(node):
        x = round_blocks(x, block)
    y = x @ w.T
    bias = inputs[5] if len(inputs) > 5 else None
    return [y if bias is None else y + bias]


def rounds_input(node: Node) -> bool:
    """Whether a node is a MatMulNBits whose kernel rounds the activations to 8 bits."""
    return node.op == "MatMulNBits" and int(node.attributes.get("accuracy_level", 0)) == 4


def round_blocks(x: Tensor, block: int) -> Tensor:
    """x with each run of `block` values of its last axis on 255 even steps: x̂ = rint(x · (127 / m)) · (m / 127).

    m is the largest |x| of the run. Measured on ONNX Runtime 1.31: no value of 2 million rounds otherwise, while with
    x / (m / 127) 4 do.
    """
    spare = -x.shape[-1] % block
    runs = torch.nn.functional.pad(x, (0, spare)).reshape(*x.shape[:-1], -1, block)
    largest = runs.abs().amax(-1, keepdim=True)
    top = torch.full_like(largest, 127.0)  # torch divides a number by a tensor as number · (1 / tensor), rounded twice
    steps = torch.where(largest > 0, top / largest, 0.0)
    rounded = (runs * steps).round_() * (largest / top)
    return rounded.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]


def _rows(packed: Tensor, bits: int, count: int) -> Tensor:
    """The integers of each row, whose last byte may be filled up."""
    whole = (packed.shape[0], packed.shape[1] * (8 // bits))
    return unpack(packed.reshape(-1), bits=bits, signed=False, shape=whole)[:, :count]


def dequantized_blocks(q: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int, block: int) -> np.ndarray:
    """DequantizeLinear with block_size: (q - z) · s, float32, one s and z for each `block` values along `axis`."""
    s, z = (np.repeat(t, block, axis)[tuple(slice(n) for n in q.shape)] for t in (scale, zero_point))
    return np.asarray((q.astype(np.int32) - z.astype(np.int32)).astype(np.float32) * s)


def _given(x: Tensor | None) -> Tensor:
    assert x is not None
    return x


def rounded_weight(values: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """The integers of a float weight, its scale and zero point: rint(w / s) + z, in the zero point's type."""
    w, scale = values[:2]
    zero_point = values[2] if len(values) > 2 else np.zeros(scale.shape, np.uint8)
    shape = [1] * w.ndim
    if scale.size > 1:
        shape[axis] = scale.size
    limits = np.iinfo(zero_point.dtype)
    q = np.rint(w / scale.reshape(shape)) + zero_point.astype(np.float64).reshape(shape)
    rounded: np.ndarray = q.clip(int(limits.min), int(limits.max)).astype(zero_point.dtype)
    return rounded

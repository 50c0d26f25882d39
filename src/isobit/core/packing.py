"""Packing of 1-, 2- and 4-bit integers into bytes, least significant bits first (the order of ONNX's INT4)."""

import torch
from torch import Tensor

from isobit.core.errors import SettingError


def pack(q: Tensor, *, bits: int, signed: bool) -> Tensor:
    """Pack integers into a flat uint8 tensor of ceil(numel · bits / 8) bytes; spare bits are zero.

    Raises SettingError where `bits` is not 1, 2, 4 or 8, or a value does not fit.

    >>> pack(torch.tensor([1, -1, 3]), bits=4, signed=True).tolist()
    [241, 3]
    """
    low, high = _limits(bits, signed)
    if q.numel() and (int(q.min()) < low or int(q.max()) > high):
        raise SettingError(f"values from {int(q.min())} to {int(q.max())} do not fit in {low}..{high} ({bits} bits)")
    per_byte = 8 // bits
    flat = q.reshape(-1).to(torch.int32) & ((1 << bits) - 1)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % per_byte)).reshape(-1, per_byte)
    shifts = torch.arange(per_byte, device=q.device, dtype=torch.int32) * bits
    return (flat << shifts).sum(1).to(torch.uint8)


def unpack(packed: Tensor, *, bits: int, signed: bool, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`: int8 (or uint8) of that shape."""
    _limits(bits, signed)
    per_byte = 8 // bits
    shifts = torch.arange(per_byte, device=packed.device, dtype=torch.int32) * bits
    flat = ((packed.to(torch.int32)[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)
    count = int(torch.Size(shape).numel())
    if flat.numel() - count not in range(per_byte):
        raise SettingError(f"{packed.numel()} bytes do not hold {count} values of {bits} bits")
    flat = flat[:count].reshape(shape)
    if signed:
        flat = flat - ((flat >> (bits - 1)) << bits)
    return flat.to(torch.int8 if signed else torch.uint8)


def _limits(bits: int, signed: bool) -> tuple[int, int]:
    if bits not in (1, 2, 4, 8):
        raise SettingError(f"only 1, 2, 4 and 8 bits pack into bytes, got {bits}")
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)

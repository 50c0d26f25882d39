"""What the engines that take PT2 archives share: bytes of one sign, exposed tensors, checked inputs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isobit.core.errors import ArtifactError, EngineError, UnsupportedError
from isobit.core.pt2_file import Call, Pt2, Ref, read_pt2
from isobit.core.pt2_program import module_of

_QUANTIZE = "quantized_decomposed.quantize_per_tensor.default"
_DEQUANTIZE = "quantized_decomposed.dequantize_per_tensor.default"
_ON_INTEGERS = frozenset({"aten.constant_pad_nd.default", "aten.minimum.default"})
_SHIFTS = {(torch.int8, False): 128, (torch.uint8, True): -128}


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Signed:
    """A program whose activations are bytes of one sign. `raised` are the integers that lie higher than in the file, by
    how much, under the names of their quantizers.
    """

    program: Pt2
    raised: dict[str, int]


def read_program(path: Path | str, *, expose: Sequence[str] = ()) -> Pt2:
    """The program in a file. Raises EngineError for what is no PT2 archive, or has ops or tensors that it must not."""
    try:
        program = read_pt2(path)
        module_of(program)
    except (ArtifactError, UnsupportedError) as error:
        raise EngineError(str(error)) from error
    quantizers = {call.results[0] for call in program.calls if call.target == _QUANTIZE}
    if unknown := [name for name in expose if name not in quantizers]:
        raise EngineError(f"there is no tensor {unknown[0]!r} to expose in the file")
    return program


def with_sign(program: Pt2, *, signed: bool) -> Signed:
    """The same program with signed bytes for all activations, or unsigned ones: all are 128 lower or higher."""
    raised: dict[str, int] = {}
    moved: dict[str, int] = {}
    calls = []
    constants = dict(program.constants)
    for call in program.calls:
        a = call.arguments
        source = a.get("input", a.get("self"))
        by = moved.get(source.name, 0) if isinstance(source, Ref) else 0
        if call.target == _QUANTIZE:
            by = moved[call.results[0]] = raised[call.results[0]] = _SHIFTS.get((a["dtype"], signed), 0)
        if by and call.target in (_QUANTIZE, _DEQUANTIZE):
            calls.append(_shifted(call, by))
        elif by and call.target in _ON_INTEGERS:
            calls.append(_on_integers(call, by, constants))
            moved[call.results[0]] = by
        else:
            calls.append(call)
    return Signed(program=replace(program, calls=tuple(calls), constants=constants), raised=raised)


def check_inputs(program: Pt2, inputs: Sequence[np.ndarray]) -> None:
    """Compare `inputs` with those of the program: count, dtype, rank and every fixed size. Raises EngineError."""
    if len(inputs) != len(program.inputs):
        names = ", ".join(i.name for i in program.inputs)
        raise EngineError(f"the file takes {len(program.inputs)} inputs ({names}), got {len(inputs)}")
    batches = {len(x) for x, i in zip(inputs, program.inputs, strict=True) if x.ndim and i.sizes and i.sizes[0] is None}
    for want, x in zip(program.inputs, inputs, strict=True):
        kind = torch.zeros(0, dtype=want.dtype).numpy().dtype
        if x.dtype != kind:
            raise EngineError(f"input {want.name!r} has to be {kind}, got {x.dtype}")
        fits = len(want.sizes) == x.ndim and len(batches) <= 1
        if not fits or any(s not in (None, have) for s, have in zip(want.sizes, x.shape, strict=True)):
            shown = " × ".join("batch" if size is None else str(size) for size in want.sizes)
            raise EngineError(f"input {want.name!r} has to have the shape {shown}, got {x.shape}")


def example_of(program: Pt2, *, batch: int = 1) -> list[np.ndarray]:
    """Inputs of zeros, `batch` samples where there may be any number."""
    return [
        np.zeros([s or batch for s in i.sizes], torch.zeros(0, dtype=i.dtype).numpy().dtype) for i in program.inputs
    ]


def _shifted(call: Call, by: int) -> Call:
    """A quantizer whose integers lie `by` higher."""
    a: dict[str, Any] = dict(call.arguments)
    for key in ("zero_point", "quant_min", "quant_max"):
        a[key] += by
    a["dtype"] = torch.uint8 if by > 0 else torch.int8
    return replace(call, arguments=a)


def _on_integers(call: Call, by: int, constants: dict[str, torch.Tensor]) -> Call:
    """An op that pads integers or caps them, with its number or caps moved too."""
    a: dict[str, Any] = dict(call.arguments)
    if "pad" in a:
        a["value"] = (a.get("value") or 0) + by
        return replace(call, arguments=a)
    caps = a["other"].name
    kind = torch.uint8 if by > 0 else torch.int8
    constants[f"{caps}_raised"] = (constants[caps].to(torch.int16) + by).to(kind)
    a["other"] = Ref(f"{caps}_raised")
    return replace(call, arguments=a)

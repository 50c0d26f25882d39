"""ONNX with QuantizeLinear and DequantizeLinear: integer weights and biases, the form that CPU engines fuse."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx_ir as ir
import torch
from onnx import numpy_helper
from onnxscript import opset21 as op
from torch import Tensor, fx

from isobit.core.artifact import Artifact, artifact_of, own_metadata
from isobit.core.errors import IsobitError, UnsupportedError
from isobit.core.files import atomic_path, check_writable
from isobit.core.float16 import SMALLEST_NORMAL
from isobit.core.grid import LARGEST_FLOAT16
from isobit.core.quiet import quiet
from isobit.export.blockwise import write_blockwise
from isobit.export.matmul_integer import write_matmul_integer
from isobit.export.matmul_nbits import write_matmul_nbits
from isobit.export.packing import pack_weights, write_casts, write_look_ups
from isobit.export.tidy import tidy
from isobit.graph.convert import Levels, clamped_biases, convert, hash_integers, levels
from isobit.graph.insert import preparation
from isobit.graph.names import names
from isobit.targets import DequantizeLinear, MatMulInteger, MatMulNBits
from isobit.targets.form import Form

OPSET = 21


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxQdq:
    """Settings of the ONNX exporter. With `packed`, weights of fewer than 8 bits take as many in the file."""

    format: str = "onnx"
    packed: bool = True

    def export(
        self,
        model: fx.GraphModule,
        path: str | Path,
        *,
        example: tuple[Tensor, ...],
        metadata: dict[str, str] | None = None,
    ) -> Artifact:
        """Write a prepared model as ONNX, opset 21, with a dynamic batch.

        Raises UnsupportedError for a grid that has no ONNX form, OutputError where `path` cannot be written.
        """
        path = Path(path)
        check_writable(path)
        deployed = convert(model)
        program = to_onnx(deployed, example)
        tidy(program, layers=set(names(model.graph).values()), quantized=True)
        profile = preparation(model).profile
        write_look_ups(program, levels(deployed))
        write_casts(program)
        left = _write_form(program, profile.form, levels(deployed))
        if self.packed:
            pack_weights(program, left)
        held = own_metadata(metadata, target=profile.name, integers_sha256=hash_integers(deployed))
        program.metadata_props.update(held)
        with atomic_path(path) as temporary:
            ir.save(program, temporary)
        return artifact_of(path, format=self.format, metadata=held, notes=clamped_biases(deployed))


def _write_form(program: ir.Model, form: Form, levels: Mapping[str, Levels]) -> Mapping[str, Levels]:
    """Write products with quantized weights as the target multiplies them; the weights that may still be packed."""
    match form:
        case MatMulNBits():
            write_matmul_nbits(program, levels, form)
            return levels
        case MatMulInteger():
            turned = write_matmul_integer(program)
            return {name: of.turned() if name in turned else of for name, of in levels.items()}
        case DequantizeLinear():
            stay = write_blockwise(program, levels)
            return {name: of for name, of in levels.items() if name not in stay}


def export_float(model: fx.GraphModule, path: str | Path, *, example: tuple[Tensor, ...]) -> Path:
    """Write a captured float model as ONNX: the baseline that a quantized file is compared with."""
    path = Path(path)
    check_writable(path)
    program = to_onnx(model, example)
    tidy(program, layers=set(names(model.graph).values()))
    with atomic_path(path) as temporary:
        ir.save(program, temporary)
    return path


def to_onnx(model: fx.GraphModule, example: tuple[Tensor, ...]) -> ir.Model:
    """Translate with torch's own exporter; isobit's ops become standard ones."""
    inputs = tuple(_two_samples(x) for x in example)
    batch = torch.export.Dim.DYNAMIC
    with quiet("torch.onnx"), torch.no_grad():
        try:
            program = torch.onnx.export(
                model.eval(),
                inputs,
                dynamo=True,
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                opset_version=OPSET,
                custom_translation_table=TRANSLATIONS,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise UnsupportedError(f"the network has no ONNX form: {_first_cause(error)}") from error
    if program is None:
        raise IsobitError("torch.onnx.export returned nothing")
    return program.model


def _quantize_dequantize(x: Any, scale: Any, zero_point: Any, low: int, high: int) -> Any:
    return op.DequantizeLinear(_quantize(x, scale, zero_point, low, high), scale, zero_point)


def _quantize_cap_dequantize(x: Any, scale: Any, zero_point: Any, low: int, high: int, caps: Any) -> Any:
    return op.DequantizeLinear(op.Min(_quantize(x, scale, zero_point, low, high), caps), scale, zero_point)


def _quantize(x: Any, scale: Any, zero_point: Any, low: int, high: int) -> Any:
    q = op.QuantizeLinear(x, scale, zero_point)
    if (low, high) not in ((0, 255), (-128, 127), (0, 65535), (-32768, 32767)):
        # On the integers: a float Clip in front would keep engines from fusing the QuantizeLinear.
        kind = np.int8 if low < 0 else np.uint8
        q = op.Clip(q, op.Constant(value=_byte(low, kind)), op.Constant(value=_byte(high, kind)))
    return q


def _quantize_to_levels(x: Any, quarter: Any, half: Any, offset: Any, table: Any, scale: Any, zero_point: Any) -> Any:
    index = op.QuantizeLinear(op.Sub(x, quarter), half, offset)
    q = op.Gather(table, op.Cast(index, to=int(ir.DataType.INT32)))  # type: ignore[type-var]
    return op.DequantizeLinear(q, scale, zero_point)


def _dequantize(q: Any, scale: Any, zero_point: Any, axis: int, block: int) -> Any:
    if block:
        return op.DequantizeLinear(q, scale, zero_point, axis=axis, block_size=block)
    return op.DequantizeLinear(q, scale, zero_point, axis=axis)


def _dynamic_quantize_dequantize(x: Any) -> Any:
    q, scale, zero_point = op.DynamicQuantizeLinear(x)
    return op.DequantizeLinear(q, scale, zero_point)


def _look_up(table: Any, index: Any) -> Any:
    # Through a DequantizeLinear, which the exporter's constant folding leaves alone; `write_look_ups` takes it away.
    index = op.DequantizeLinear(index, op.Constant(value_float=1.0), op.Constant(value=_byte(0, np.uint8)))  # type: ignore[type-var]
    return op.Gather(table, op.Cast(index, to=int(ir.DataType.INT32)))  # type: ignore[type-var]


def _quantize_to_octaves(x: Any, table: Any, borders: Any, steps: int, lowest: float) -> Any:
    # In floats, of which 2^24 are whole numbers in a row. The table has as many values below 0 as above, less one.
    integer, (zero, one, tiny) = int(ir.DataType.INT64), (op.Constant(value_float=v) for v in (0.0, 1.0, 1e-38))
    half: Any = op.Div(op.Size(table), op.Constant(value_int=2))  # type: ignore[type-var]
    middle: Any = op.Cast(half, to=int(ir.DataType.FLOAT))
    x = op.Clip(x, op.ReduceMin(table, keepdims=0), op.ReduceMax(table, keepdims=0))
    octaves: Any = op.Mul(op.Log(op.Clip(op.Abs(x), tiny)), op.Constant(value_float=steps / math.log(2)))
    above: Any = op.Clip(op.Sub(op.Round(octaves), op.Constant(value_float=lowest)), zero, op.Sub(middle, one))
    below: Any = op.Sub(op.Sub(middle, one), above)
    index: Any = op.Cast(op.Where(op.Less(x, zero), below, op.Add(middle, above)), to=integer)
    low, high = op.Gather(borders, index), op.Gather(borders, op.Add(index, op.Constant(value_int=1)))
    down, up = (op.Cast(c, to=integer) for c in (op.Less(x, low), op.GreaterOrEqual(x, high)))
    return op.Gather(table, op.Sub(op.Add(index, up), down))


def _cast_to_float16(x: Any, subnormals: bool) -> Any:
    largest = float(LARGEST_FLOAT16)
    y: Any = op.Clip(x, op.Constant(value_float=-largest), op.Constant(value_float=largest))
    half: Any = op.Cast(y, to=int(ir.DataType.FLOAT16))
    y = op.Cast(half, to=int(ir.DataType.FLOAT))
    if subnormals:
        return y
    size, smallest, zero = (op.Abs(y), *(op.Constant(value_float=v) for v in (SMALLEST_NORMAL, 0.0)))
    return op.Where(op.Less(size, smallest), zero, y)


def _from_float16(x: Any) -> Any:
    # The exporter folds a Cast of a constant, and leaves a DequantizeLinear alone; `write_casts` makes it a Cast.
    return op.DequantizeLinear(x, op.Constant(value_float=1.0))  # type: ignore[type-var]


def _global_average_pool(x: Any) -> Any:
    return op.GlobalAveragePool(x)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.isobit.quantize_dequantize.default: _quantize_dequantize,
    torch.ops.isobit.quantize_cap_dequantize.default: _quantize_cap_dequantize,
    torch.ops.isobit.dequantize.default: _dequantize,
    torch.ops.isobit.dynamic_quantize_dequantize.default: _dynamic_quantize_dequantize,
    torch.ops.isobit.quantize_to_levels.default: _quantize_to_levels,
    torch.ops.isobit.look_up.default: _look_up,
    torch.ops.isobit.quantize_to_octaves.default: _quantize_to_octaves,
    torch.ops.isobit.cast_to_float16.default: _cast_to_float16,
    torch.ops.isobit.from_float16.default: _from_float16,
    torch.ops.isobit.global_average_pool.default: _global_average_pool,
}


def _byte(value: int, kind: type) -> Any:
    return numpy_helper.from_array(np.array(value, dtype=kind))


def _two_samples(x: Tensor) -> Tensor:
    """At least two samples: a batch of one would be baked into the graph."""
    return x[:2] if x.shape[0] >= 2 else x.expand(2, *x.shape[1:]).contiguous()


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

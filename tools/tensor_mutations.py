"""Ways to break the tensors of an ONNX file: sizes, types, data that lie outside, scales and zero points."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from mutations import OUTSIDE, Change, Random, constant, node, pick, tensor


def set_dims(*sizes: int) -> Change:
    def change(model: ModelProto, rng: Random, _: Path) -> None:
        t = tensor(model, rng)
        del t.dims[:]
        t.dims.extend(sizes)

    return change


def set_field(field: str, *values: object) -> Change:
    """A field of an initializer."""

    def change(model: ModelProto, rng: Random, _: Path) -> None:
        setattr(tensor(model, rng), field, pick(rng, list(values)))

    return change


def resize_data(factor: float) -> Change:
    def change(model: ModelProto, rng: Random, _: Path) -> None:
        t = tensor(model, rng)
        t.raw_data = (t.raw_data * 2)[: int(len(t.raw_data) * factor)]

    return change


def stored_twice(model: ModelProto, rng: Random, _: Path) -> None:
    t = tensor(model, rng)
    t.int32_data.extend([300] * int(np.prod(t.dims)))


def out_of_type(model: ModelProto, rng: Random, _: Path) -> None:
    t = tensor(model, rng, TensorProto.INT8, TensorProto.UINT8)
    t.ClearField("raw_data")
    t.int32_data.extend([-70_000] * int(np.prod(t.dims)))


def missing_initializer(model: ModelProto, rng: Random, _: Path) -> None:
    del model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]


def double_initializer(model: ModelProto, rng: Random, _: Path) -> None:
    model.graph.initializer.append(tensor(model, rng))


def external(location: str | None, *, size: float = 1.0, **entries: str) -> Change:
    """The data of a tensor in another file; `size` of what it needs is written to weights.bin."""

    def change(model: ModelProto, rng: Random, folder: Path) -> None:
        t = tensor(model, rng, TensorProto.INT8)
        (folder / "weights.bin").write_bytes(t.raw_data[: int(len(t.raw_data) * size)])
        (folder / "inner").mkdir()
        secret = folder.parent / OUTSIDE / "secret.bin"
        (folder / "link.bin").symlink_to(secret)
        (folder / "linked").symlink_to(secret.parent, target_is_directory=True)
        (folder / "circle").symlink_to("circle")
        os.mkfifo(folder / "pipe")
        t.ClearField("raw_data")
        t.data_location = TensorProto.EXTERNAL
        for key, value in {"location": (location or "").format(outside=secret.parent), **entries}.items():
            t.external_data.add(key=key, value=value)

    return change


def long_tensor_name(model: ModelProto, rng: Random, _: Path) -> None:
    node(model, rng).output[0] = "a" * 5_000_000


def scale(*values: float) -> Change:
    def change(model: ModelProto, rng: Random, _: Path) -> None:
        n = node(model, rng, "QuantizeLinear", "DequantizeLinear")
        t = constant(model, n.input[1])
        array = numpy_helper.to_array(t).copy()
        array.flat[int(rng.integers(array.size))] = pick(rng, list(values))
        t.CopyFrom(numpy_helper.from_array(array, t.name))

    return change


def quantizer_constant(index: int, array: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(model: ModelProto, rng: Random, _: Path) -> None:
        n = node(model, rng, "QuantizeLinear", "DequantizeLinear")
        t = constant(model, n.input[index])
        t.CopyFrom(numpy_helper.from_array(array(numpy_helper.to_array(t)), t.name))

    return change

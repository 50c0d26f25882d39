"""What cannot be imported says which op, which node and what to do; what is changed is noted."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from graph.from_onnx.files import Shape, arrays_for, check, close, file, node, results, run
from isobit.core.errors import ArtifactError, IsobitError, UnsupportedError
from isobit.graph.capture import capture
from isobit.graph.from_onnx import load_onnx

F32 = np.float32
I64 = np.int64
IMAGE: Shape = ("N", 3, 8, 8)
CONV = np.ones((4, 3, 3, 3), F32)


def unknown_op() -> onnx.ModelProto:
    return file([node("NonZero", "x", "y", name="find")], {"x": IMAGE}, outputs={"y": TensorProto.INT64})


def vendors_op() -> onnx.ModelProto:
    model = file([node("Relu", "x", "h"), node("Relu", "h", "y", name="g")], {"x": IMAGE})
    model.graph.node[1].op_type, model.graph.node[1].domain = "FusedGelu", "com.vendor"
    model.opset_import.append(helper.make_opsetid("com.vendor", 1))
    return model


def quantized() -> onnx.ModelProto:
    return file(
        [node("QuantizeLinear", "x s z", "q", name="q"), node("DequantizeLinear", "q s z")],
        {"x": IMAGE}, {"s": np.array(0.1, F32), "z": np.array(0, np.uint8)},
    )  # fmt: skip


def same_padding_of_a_free_size() -> onnx.ModelProto:
    nodes = [node("Conv", "x w", auto_pad="SAME_UPPER", strides=[2, 2], name="stem")]
    return file(nodes, {"x": ("N", 3, "height", "width")}, {"w": CONV})


def batch_taken_away() -> onnx.ModelProto:
    return file([node("Squeeze", "x a", name="gone")], {"x": (1, 3, 8, 8)}, {"a": np.array([0], I64)})


def batch_mixed_with_another_axis() -> onnx.ModelProto:
    """Rows of both samples side by side: each sample's result holds values of the other one."""
    nodes = [node("Transpose", "x", "t", perm=[1, 0]), node("Reshape", "t s", "r", name="mix")]
    return file([*nodes, node("Softmax", "r", axis=1)], {"x": (2, 6)}, {"s": np.array([2, 6], I64)})


def positions_computed() -> onnx.ModelProto:
    nodes = [node("ReduceMax", "x", "m", keepdims=0), node("Cast", "m", "i", to=7), node("Unsqueeze", "i a", "s"),
             node("Expand", "x s", name="grow")]  # fmt: skip
    return file(nodes, {"x": ("N", 1)}, {"a": np.array([0], I64)}, rank=2)


def mask_of_dropout() -> onnx.ModelProto:
    nodes = [node("Dropout", "x", "d m", name="drop"), node("Cast", "m", "c", to=1), node("Add", "d c")]
    return file(nodes, {"x": IMAGE})


def training_batch_norm() -> onnx.ModelProto:
    constants = {k: np.ones(3, F32) for k in ("s", "b", "m", "v")}
    return file([node("BatchNormalization", "x s b m v", "y a c", training_mode=1, name="bn")], {"x": IMAGE}, constants)


def shapes_that_do_not_fit() -> onnx.ModelProto:
    """Free in the file, so that only an import finds it."""
    return file([node("Mul", "x c", name="scale")], {"x": ("N", "length")}, {"c": np.ones((3, 5), F32)}, rank=2)


def no_input() -> onnx.ModelProto:
    return file([node("Relu", "c")], {}, {"c": np.ones((1, 3), F32)})


def wide_integers() -> onnx.ModelProto:
    return file([node("Relu", "x", "h"), node("Cast", "h", "y", to=12, name="wide")], {"x": IMAGE}, outputs={"y": 12})


CASES: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[str, ...]]] = {
    "unknown op": (unknown_op, ("NonZero (at find)", "Supported are", "Conv,")),
    "op of a vendor": (vendors_op, ("com.vendor.FusedGelu (at g)",)),
    "quantized": (quantized, ("quantized already", "q is a QuantizeLinear", "isobit verify")),
    "SAME padding of a free size": (same_padding_of_a_free_size, ("Conv stem", "auto_pad", "fixed sizes")),
    "batch taken away": (batch_taken_away, ("Squeeze gone", "dynamic batch size")),
    "batch mixed": (batch_mixed_with_another_axis, ("dynamic batch size",)),
    "shape from data": (positions_computed, ("Expand grow", "computed from the data")),
    "mask of dropout": (mask_of_dropout, ("Dropout drop", "eval mode")),
    "batch norm in training mode": (training_batch_norm, ("BatchNormalization bn", "eval mode")),
    "shapes that do not fit": (shapes_that_do_not_fit, ("Mul scale cannot be imported",)),
    "no input": (no_input, ("no input",)),
    "type of numbers": (wide_integers, ("Cast wide", "UINT32")),
}


@pytest.mark.parametrize("name", CASES)
def test_the_error_names_the_node_and_what_to_do(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, says = CASES[name]
    onnx.save(make(), tmp_path / "net.onnx")
    with pytest.raises(UnsupportedError) as raised:
        load_onnx(tmp_path / "net.onnx")
    assert str(raised.value).startswith(str(tmp_path / "net.onnx"))
    assert all(part in str(raised.value) for part in says), str(raised.value)
    assert "\n" not in str(raised.value)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"no model" * 30])
def test_broken_files_are_refused_by_the_one_reader(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ArtifactError):
        load_onnx(tmp_path / "net.onnx")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IsobitError, match="there is no file"):
        load_onnx(tmp_path / "net.onnx")


@pytest.mark.parametrize(("kind", "word"), [(TensorProto.FLOAT16, "float16"), (TensorProto.DOUBLE, "float64")])
def test_other_floats_become_float32_with_a_note(kind: int, word: str, tmp_path: Path) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(dtype)
    nodes = [node("Conv", "x w", "c"), node("Relu", "c")]
    model = file(nodes, {"x": (IMAGE, kind)}, {"w": weight}, outputs={"y": kind})
    onnx.save(model, tmp_path / "net.onnx")
    network = load_onnx(tmp_path / "net.onnx")
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert any(word in note for note in network.meta["notes"])
    single = file(nodes, {"x": IMAGE}, {"w": weight.astype(F32)})
    arrays = arrays_for(single, batch=2)
    onnx.save(single, tmp_path / "single.onnx")
    close(results(network, arrays)[0], run(tmp_path / "single.onnx", arrays)[0])
    assert any(word in note for note in capture(network, torch.from_numpy(arrays[0])).meta["notes"])


def test_sizes_that_the_file_leaves_free_stay_free(tmp_path: Path) -> None:
    """A flattened shape computed in the file, with free height and width."""
    nodes = [
        node("Conv", "x w", "c", pads=[1, 1, 1, 1]), node("Shape", "c", "s"), node("Slice", "s a b", "n"),
        node("Concat", "n e", "t", axis=0), node("Reshape", "c t", "r"), node("ReduceMean", "r k", "y", keepdims=0),
    ]  # fmt: skip
    constants = {
        "w": CONV,
        "a": np.array([0], I64),
        "b": np.array([2], I64),
        "e": np.array([-1], I64),
        "k": np.array([2], I64),
    }
    model = file(nodes, {"x": ("N", 3, "height", "width")}, constants)
    network = check(model, tmp_path)
    assert network(torch.ones(5, 3, 12, 20)).shape == (5, 4)


def test_a_pyramid_of_free_sizes(tmp_path: Path) -> None:
    """Resize to the size of another map, as detection networks do."""
    nodes = [
        node("Conv", "x w", "c", strides=[2, 2], pads=[1, 1, 1, 1]), node("Shape", "x", "s", start=2),
        node("Resize", "c - - t", "r", coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Shape", "c", "n", end=2), node("Concat", "n s", "t", axis=0), node("Concat", "x r", "y", axis=1),
    ]  # fmt: skip
    nodes = [nodes[0], nodes[1], nodes[3], nodes[4], nodes[2], nodes[5]]
    network = check(file(nodes, {"x": ("N", 3, "height", "width")}, {"w": CONV}), tmp_path)
    assert network(torch.ones(2, 3, 16, 24)).shape == (2, 7, 16, 24)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_batch_that_the_file_fixes_is_freed(batch: int, tmp_path: Path) -> None:
    """Heads of attention: the batch is written into two shapes, one of them behind another axis."""
    nodes = [
        node("Reshape", "x s", "h"), node("Transpose", "h", "t", perm=[2, 0, 1, 3]), node("Reshape", "t u", "v"),
        node("Reshape", "v w", "z"), node("Transpose", "z", "y", perm=[1, 0, 2]),
    ]  # fmt: skip
    constants = {
        "s": np.array([batch, 5, 2, 3], I64), "u": np.array([2, batch, 15], I64), "w": np.array([2, batch, -1], I64),
    }  # fmt: skip
    model = file(nodes, {"x": (batch, 5, 6)}, constants)
    network = check(model, tmp_path)
    x = torch.randn(3 * batch, 5, 6)
    torch.testing.assert_close(network(x), x.reshape(-1, 5, 2, 3).permute(0, 2, 1, 3).reshape(-1, 2, 15))

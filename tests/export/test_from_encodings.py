"""AIMET's encodings applied to their float network: the integers of isobit's own QDQ file, and AIMET's form by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import isobit
from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.engines import ENGINES
from isobit.export import EXPORTERS
from isobit.export.from_encodings import quantized_file, read_encodings, with_encodings
from isobit.integer.interpreter import Reference
from vendor import PROFILES, known_target, quantized


@pytest.mark.parametrize(
    ("network", "format"),
    [
        *((name, "aimet") for name in ("residual", "depthwise", "concat", "shared", "mlp", "vit")),
        ("residual", "aimet-1.0"),
    ],
)
def test_the_integers_of_isobits_own_qdq_file(network: str, format: str, tmp_path: Path) -> None:
    """All integers between layers, and the outputs to the bit."""
    found = quantized(network, format)
    EXPORTERS[format]().export(found.model, tmp_path / "net.onnx", example=found.inputs)
    with known_target(PROFILES[format]):
        isobit.export(found.model, tmp_path / "qdq.onnx")
    applied = with_encodings(tmp_path / "net.onnx", tmp_path / "net.encodings")
    onnx.checker.check_model(applied)
    more = [x.repeat(4, *[1] * (x.dim() - 1)).numpy() for x in found.inputs]
    one, own = (Reference(m).run(more) for m in (applied, tmp_path / "qdq.onnx"))
    for y, expected in zip(one.outputs, own.outputs, strict=True):
        np.testing.assert_array_equal(y, expected)
    seen = {_key(q) for q in one.integers.values()}
    graph = onnx.load(tmp_path / "qdq.onnx").graph
    constants = {t.name for t in graph.initializer}
    fixed = {n.output[0] for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] in constants}
    assert seen
    assert [name for name, q in own.integers.items() if name not in fixed and _key(q) not in seen] == []


def _key(q: np.ndarray) -> tuple[tuple[int, ...], bytes]:
    return q.shape, (q.astype(np.int16) + (128 if q.dtype == np.int8 else 0)).tobytes()


def entry(scale: float, offset: int, *, symmetric: bool = False) -> dict[str, Any]:
    """An encoding of bytes, as AIMET 1 writes it."""
    ends = {"max": (255 + offset) * scale, "min": offset * scale, "offset": offset, "scale": scale}
    return {"bitwidth": 8, "dtype": "int", "is_symmetric": str(symmetric), **ends}


CONV: dict[str, Any] = {
    "activation_encodings": {"x": [entry(0.01, -100)], "y": [entry(0.02, 0)]},
    "param_encodings": {"w": [entry(scale, -128, symmetric=True) for scale in (0.004, 0.008)]},
}
WEIGHT = CONV["param_encodings"]["w"]


def network(path: Path, *, opset: int = 11, relu: bool = True) -> Path:
    """conv → relu, as PyTorch of AIMET's days exports it."""
    r = np.random.default_rng(0)
    w, b = r.uniform(-0.5, 0.5, (2, 3, 1, 1)).astype(np.float32), r.uniform(-1, 1, 2).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv")]
    nodes.append(helper.make_node("Relu" if relu else "Identity", ["c"], ["y"], name="relu"))
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3, 4, 4])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 2, 4, 4])
    constants = [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7), path)
    return path


def saved(value: Any, path: Path) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_the_integers_by_hand_and_exact_on_an_engine(tmp_path: Path) -> None:
    """Opset 11 is lifted; the bias, without an encoding, is rint(b / (s_x · s_w)); the output keeps its name."""
    path, beside = network(tmp_path / "net.onnx"), saved(CONV, tmp_path / "net.encodings")
    model = with_encodings(path, beside)
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    given = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    scale = np.float32([0.004, 0.008])
    np.testing.assert_array_equal(held["w/integers"], np.rint(given["w"] / scale.reshape(2, 1, 1, 1)))
    np.testing.assert_array_equal(held[_bias(held)],
                                  np.rint(given["b"].astype(np.float64) / (np.float32(0.01) * scale)))  # fmt: skip
    assert held["w/integers"].dtype == np.int8 and held["x/zero_point"] == 100 and held["y/zero_point"] == 0
    assert [o.name for o in model.graph.output] == ["y"]
    if not ENGINES["onnxruntime"]().missing():
        certificate = isobit.verify(path, encodings=beside, engine="onnxruntime")
        assert (certificate.verdict, certificate.file, certificate.target) == ("exact", "net.onnx", "unknown")
        assert certificate.float_islands == ()


def _bias(held: dict[str, np.ndarray]) -> str:
    return next(name for name, q in held.items() if q.dtype == np.int32 and name.endswith("integers"))


def test_unused_levels_are_clipped_and_wide_ones_kept(tmp_path: Path) -> None:
    """4 bits lie in bytes behind a Clip; 16 bits need opset 21; asymmetric weights are unsigned bytes."""
    value = json.loads(json.dumps(CONV))
    four = {"bitwidth": 4, "dtype": "int", "is_symmetric": "False", "max": 1.0, "min": -0.5, "offset": -5, "scale": 0.1}
    wide = {**four, "bitwidth": 16, "offset": -30000, "scale": 0.001, "max": 35.535}
    value["activation_encodings"] = {"x": [four], "y": [wide]}
    value["param_encodings"]["w"] = [{**WEIGHT[0], "offset": -90, "max": 165 * 0.004}]
    model = with_encodings(network(tmp_path / "net.onnx"), saved(value, tmp_path / "net.encodings"))
    assert model.opset_import[0].version == 21
    x = torch.linspace(-3, 3, 48).reshape(1, 3, 4, 4).numpy()
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert (held["w/integers"].dtype, int(held["w/zero_point"])) == (np.uint8, 90)
    assert (held["y/zero_point"].dtype, int(held["y/zero_point"])) == (np.uint16, 30000)
    run = Reference(model).run([x])
    limited = np.clip(np.rint(x / np.float32(0.1)) + 5, 0, 15)
    np.testing.assert_array_equal(run.integers["x/quantized"].clip(0, 15), limited)


def test_floats_and_old_files_without_scales(tmp_path: Path) -> None:
    value = json.loads(json.dumps(CONV))
    value["activation_encodings"]["x"] = [{"bitwidth": 8, "max": 1.55, "min": -1.0}]
    value["activation_encodings"]["y"] = [{"bitwidth": 16, "dtype": "float"}]
    read = read_encodings(saved(value, tmp_path / "net.encodings"))
    assert read.floats == ("y",)
    assert float(read.activations["x"].scale) == pytest.approx(0.01)
    assert (int(read.activations["x"].lowest), int(read.activations["x"].highest)) == (-100, 155)
    model = with_encodings(network(tmp_path / "net.onnx"), tmp_path / "net.encodings")
    assert [n.op_type for n in model.graph.node].count("QuantizeLinear") == 1


def changed(key: str, name: str, **values: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(CONV))
    value[key][name][0].update(values)
    return value


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ([1], ArtifactError, "is no file of AIMET's encodings|has no activation_encodings"),
        ({"version": "2.0.0", "encodings": []}, ArtifactError, r"version 2.0.0\) has no activation_encodings"),
        (changed("activation_encodings", "x", scale=0.0), ArtifactError, "x.*damaged|positive number"),
        (changed("activation_encodings", "x", scale="a"), ArtifactError, "the encoding of x is damaged"),
        (changed("activation_encodings", "x", bitwidth=64), ArtifactError, "x: an encoding of 64 bits"),
        ({**CONV, "param_encodings": {"v": WEIGHT}}, ArtifactError, "'v', which the network"),
        ({**CONV, "param_encodings": {"w": WEIGHT * 2}}, ArtifactError, "4 scales of w do not fit"),
        ({**CONV, "activation_encodings": {"x": WEIGHT}}, UnsupportedError, "x: an activation"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(value: Any, error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        with_encodings(network(tmp_path / "net.onnx"), saved(value, tmp_path / "net.encodings"))


def test_the_command_line(tmp_path: Path) -> None:
    from cli.bad_input import invoke

    if missing := ENGINES["onnxruntime"]().missing():
        pytest.skip(missing)
    path, beside = network(tmp_path / "net.onnx"), saved(CONV, tmp_path / "net.encodings")
    result = invoke(f"verify {path}")
    assert (result.exit_code, "give it with --encodings" in " ".join(result.stderr.split())) == (6, True), result.stderr
    result = invoke(f"verify {path} --encodings {beside} --json --engine onnxruntime")
    assert json.loads(result.stdout)["certificate"]["verdict"] == "exact"
    said = json.loads(invoke(f"analyze {path} --encodings {beside} --json").stdout)
    assert (said["integer"], said["float"]) == ({"Conv": 1}, {})
    result = invoke(f"analyze digits --encodings {beside} -d digits")
    assert (result.exit_code, "the model is a network" in result.stderr) == (2, True)
    with quantized_file(path, None) as same:
        assert same == path

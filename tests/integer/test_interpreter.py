from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from integer.cases import CASES, residual_network, samples
from integer.graphs import QdqGraph
from integer.test_requantize import gemmlowp
from isobit.core.arithmetic import FIXED_POINT, FLOAT32, GEMMLOWP, SHIFT, Arithmetic, Shift
from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.engines import Fake, OnnxRuntime
from isobit.integer import Reference, run_reference


def parameters(g: QdqGraph, tensor: str) -> tuple[np.float32, int]:
    scale, zero_point = (g.constants[name] for name in g.parameters[tensor])
    return np.float32(scale), int(zero_point)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_stays_close_to_the_float_simulation(case, tmp_path: Path) -> None:
    """An independent float32 evaluation of the same file differs by one step, seldom; here, as everywhere."""
    g = QdqGraph(11)
    case(g)
    path = g.save(tmp_path / "net.onnx")
    inputs = samples(g)
    reference = run_reference(path, inputs)
    (simulated,) = Fake().load(path).run(inputs)
    scale = g.constants[g.nodes[-1].input[1]]
    steps = np.abs(reference.outputs[0] - simulated) / scale
    assert reference.outputs[0].shape == simulated.shape and reference.outputs[0].dtype == np.float32
    assert steps.max() <= 1.01
    assert (steps > 0.5).mean() < (0.15 if case.__name__ in ("softmax", "attention") else 0.02)


def test_conv_with_gemmlowp_arithmetic() -> None:
    """Against gemmlowp's scalar code, element by element."""
    g = QdqGraph(5)
    x = g.qdq(g.input("batch", 3, 5, 5))
    y = g.qdq(g.conv(x, 3, 4), scale=0.3, zero_point=100)
    g.output(y)
    inputs = samples(g, batch=1)
    run = run_reference(g.model(), inputs, GEMMLOWP)
    names = [n.output[0] for n in g.nodes if n.op_type == "QuantizeLinear"]
    (sx, zx), (sy, zy) = parameters(g, x), parameters(g, y)
    w, sw, b = (
        g.constants[next(k for k in g.constants if k.startswith(p))] for p in ("weight_", "weight_scale", "bias_")
    )
    acc = F.conv2d(torch.from_numpy(run.integers[names[0]].astype(np.float64) - zx), torch.from_numpy(w).double())
    acc = acc.numpy() + b.reshape(-1, 1, 1)
    expected = [
        min(255, max(0, gemmlowp(int(v), float(np.float64(sx) * np.float64(sw[c]) / np.float64(sy))) + zy))
        for c in range(4)
        for v in acc[0, c].ravel()
    ]
    np.testing.assert_array_equal(run.integers[names[1]].ravel(), expected)


def power_of_two_network() -> QdqGraph:
    g = QdqGraph(6)
    x = g.qdq(g.input("batch", 3, 8, 8), scale=2**-5, zero_point=128)
    convolved = []
    for k in (-4, -3):
        w = g.rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
        names = [g.constant("weight", w), g.constant("scale", np.float32(2**-7)), g.constant("zero", np.int8(0))]
        conv = g.node("Conv", [x, g.node("DequantizeLinear", names)])
        convolved.append(g.qdq(conv, scale=2**k, zero_point=130))
    total = g.qdq(g.node("Add", convolved), scale=2**-2, zero_point=126)
    pooled = g.qdq(g.node("AveragePool", [total], kernel_shape=[2, 2]), scale=2**-3, zero_point=128)
    joined = g.qdq(g.node("Concat", [pooled, pooled], axis=1), scale=2**-2, zero_point=128)
    g.output(joined)
    return g


def test_shifts_to_even_are_the_float_simulation() -> None:
    """With powers of two and even zero points float32 fake quantization is exact: three executions agree."""
    g = power_of_two_network()
    inputs = samples(g, batch=4)
    even = run_reference(g.model(), inputs, Arithmetic(**{**fields(SHIFT), "requantize": Shift(half_even=True)}))
    mlas = run_reference(g.model(), inputs, FLOAT32)
    up = run_reference(g.model(), inputs, SHIFT)
    for name, q in even.integers.items():
        np.testing.assert_array_equal(q, mlas.integers[name])
        assert np.abs(q.astype(int) - up.integers[name]).max() <= 2
    assert any((q != up.integers[name]).any() for name, q in even.integers.items())  # ties go elsewhere


def fields(arithmetic: Arithmetic) -> dict[str, object]:
    return {name: getattr(arithmetic, name) for name in Arithmetic.__dataclass_fields__}


@pytest.mark.parametrize(("arithmetic", "error"), [(FIXED_POINT, 0.5 + 1e-4), (GEMMLOWP, 0.75)])
def test_fixed_point_add_concat_and_pooling_are_near_the_exact_value(arithmetic: Arithmetic, error: float) -> None:
    """Rounded once: half a step. Rounded twice: half a step more of the last digits that the first one left."""
    g = QdqGraph(7)
    a, b = g.qdq(g.input("batch", 4, 8, 8)), g.qdq(g.input("batch", 4, 8, 8, name="y"))
    results = [
        g.node("Add", [a, b]),
        g.node("Mul", [a, b]),
        g.node("Concat", [a, b], axis=1),
        g.node("AveragePool", [a], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        g.node("GlobalAveragePool", [b]),
    ]
    for y in results:
        g.output(g.qdq(y, scale=0.05))
    inputs = samples(g, batch=2)
    found = run_reference(g.model(), inputs, arithmetic)
    names = [n.output[0] for n in g.nodes if n.op_type == "QuantizeLinear"]
    p, q = (
        (found.integers[names[i]].astype(np.float64) - z) * np.float64(s)
        for i, (s, z) in enumerate(parameters(g, t) for t in (a, b))
    )
    exact = [
        p + q,
        p * q,
        np.concatenate([p, q], 1),
        F.avg_pool2d(torch.from_numpy(p), 3, 1, 1, count_include_pad=False).numpy(),
        q.mean((2, 3), keepdims=True),
    ]
    for value, name, node in zip(
        exact, names[2:], [n for n in g.nodes if n.op_type == "QuantizeLinear"][2:], strict=True
    ):
        scale, zero_point = (np.float64(g.constants[n]) for n in node.input[1:])
        real = np.clip(value / scale + zero_point, 0, 255)
        assert np.abs(found.integers[name] - real).max() <= error


def test_activations_are_clamped_by_fixed_point_engines() -> None:
    """A Relu whose zero point is not the lowest level: the integers are clamped, and no float op is left."""
    g = QdqGraph(8)
    x = g.qdq(g.input("batch", 3, 8, 8))
    g.output(g.qdq(g.node("Relu", [g.conv(x, 3, 4)]), scale=0.1, zero_point=40))
    inputs = samples(g)
    fixed, mlas = (run_reference(g.model(), inputs, a) for a in (GEMMLOWP, FLOAT32))
    name = list(fixed.integers)[-1]
    assert fixed.integers[name].min() == 40 and fixed.exact
    assert mlas.float_ops == tuple(n.name for n in g.nodes if n.op_type == "Conv")
    assert np.abs(fixed.integers[name].astype(int) - mlas.integers[name]).max() <= 1


def test_float_ops_are_named_and_close() -> None:
    g = QdqGraph(9)
    x = g.qdq(g.input("batch", 5, 8))
    scale, bias = (g.constant("c", g.rng.standard_normal(8).astype(np.float32)) for _ in range(2))
    y = g.qdq(g.node("LayerNormalization", [x, scale, bias], axis=-1))
    z = g.qdq(g.node("Tanh", [y]), scale=0.01)
    mean = g.constant("axes", np.array([1], np.int64))
    g.output(g.qdq(g.node("ReduceMean", [z, mean], keepdims=0), scale=0.01))
    inputs = samples(g, batch=50)
    run = run_reference(g.model(), inputs)
    assert run.float_ops == tuple(n.name for n in g.nodes if n.op_type in ("LayerNormalization", "Tanh", "ReduceMean"))
    assert not run.exact


def test_ops_without_a_rule_run_in_the_reference_evaluator(tmp_path: Path) -> None:
    g = QdqGraph(10)
    x = g.qdq(g.input("batch", 4, 6, 6))
    y = g.node("Elu", [g.node("DepthToSpace", [x], blocksize=2)])
    top = g.node("Resize", [y, "", g.constant("s", np.array([1, 1, 2, 2], np.float32))], mode="nearest")
    g.output(g.qdq(top))
    path = g.save(tmp_path / "net.onnx")
    inputs = samples(g)
    np.testing.assert_array_equal(run_reference(path, inputs).outputs[0], Fake().load(path).run(inputs)[0])


def test_keeps_what_is_asked_for_and_any_batch_alike() -> None:
    g = QdqGraph(12)
    residual_network(g)
    reference = Reference(g.model())
    inputs = samples(g, batch=4)
    whole = reference.run(inputs)
    name = list(whole.integers)[3]
    assert list(reference.run(inputs, keep=[name]).integers) == [name]
    assert reference.run(inputs, keep=()).integers == {}
    parts = [reference.run([x[i : i + 1] for x in inputs]) for i in range(4)]
    for key, q in whole.integers.items():
        np.testing.assert_array_equal(q, np.concatenate([p.integers[key] for p in parts]))


def test_a_register_wraps_around() -> None:
    """An accumulator beyond 31 bits does what int32 registers do."""
    g = QdqGraph(13)
    x = g.qdq(g.input("batch", 1), scale=1.0, zero_point=0)
    w = g.node("DequantizeLinear", [g.constant("w", np.array([[1]], np.int8)), g.constant("s", np.float32(1.0))])
    b = g.node(
        "DequantizeLinear", [g.constant("b", np.array([2**31 - 100], np.int32)), g.constant("s", np.float32(1.0))]
    )
    g.output(g.qdq(g.node("Gemm", [x, w, b], transB=1), scale=2.0**24, zero_point=128))
    low, high = (run_reference(g.model(), [np.array([[v]], np.float32)]) for v in (99.0, 100.0))
    assert [list(r.integers.values())[-1].item() for r in (low, high)] == [255, 0]


def test_bad_files_and_inputs(tmp_path: Path) -> None:
    g = QdqGraph(14)
    residual_network(g)
    path = g.save(tmp_path / "net.onnx")
    with pytest.raises(ArtifactError, match="takes 1 inputs, got 2"):
        run_reference(path, [np.zeros(1), np.zeros(1)])
    (tmp_path / "half.onnx").write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ArtifactError, match=r"half\.onnx is truncated"):
        run_reference(tmp_path / "half.onnx", [])
    with pytest.raises(ArtifactError, match="there is no file"):
        run_reference(tmp_path / "none.onnx", [])
    model = onnx.load(path)
    model.opset_import.append(onnx.helper.make_opsetid("vendor", 1))
    model.graph.node[0].domain, model.graph.node[0].op_type = "vendor", "Strange"
    with pytest.raises(UnsupportedError, match=r"vendor\.Strange"):
        run_reference(model, samples(g))


@pytest.mark.parametrize(("factor", "fused"), [(1.0, True), (1.009, True), (1.05, False), (0.5, False)])
def test_a_bias_at_another_scale_keeps_a_convolution_in_float(factor: float, fused: bool, tmp_path: Path) -> None:
    g = QdqGraph(16)
    x = g.qdq(g.input("batch", 3, 8, 8), scale=0.08)
    y = g.conv(x, 3, 4)
    name = next(name for name in g.constants if name.startswith("bias_scale"))
    g.constants[name] = (g.constants[name] * factor).astype(np.float32)
    g.output(g.qdq(y))
    path = g.save(tmp_path / "net.onnx")
    reference = Reference(path)
    assert (reference.float_ops == ()) is fused
    if not OnnxRuntime().missing():
        assert reference.float_ops == OnnxRuntime().load(path).float_islands()
    assert Reference(path, GEMMLOWP).float_ops == ()

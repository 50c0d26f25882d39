"""Files with quantized operators, read as QDQ graphs, against ONNX Runtime: its own quantizer's and isobit's."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

import isobit
from integer.cases import CASES, Case, samples
from integer.graphs import QdqGraph
from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.engines import ENGINES
from isobit.export.qoperator import write_quantized_operators
from isobit.integer import overflow_risks
from isobit.integer.files import load_qdq
from isobit.integer.interpreter import Reference
from isobit.integer.qoperator import has_quantized_operators, qdq_of_qoperators, rules_for
from zoo import small_networks

ENGINE = ENGINES["onnxruntime"]()
pytestmark = pytest.mark.skipif(bool(ENGINE.missing()), reason=ENGINE.missing() or "installed")


def written(g: QdqGraph, path: Path) -> Path:
    """The graph with quantized operators."""
    program = ir.serde.deserialize_model(g.model())
    write_quantized_operators(program)
    onnx.save(ir.serde.serialize_model(program), path)
    return path


def agree(path: Path, inputs: list[np.ndarray]) -> bool:
    """Whether the reference has one right result; outputs and every quantized tensor have to be the engine's."""
    file = load_qdq(path)
    run = Reference(file, rules_for(file, ENGINE.arithmetic)).run(inputs)
    names = list(run.integers)
    session = ENGINE.load(path, expose=names)
    values = dict(zip(session.outputs, session.run(inputs), strict=True))
    for name in names:
        if run.exact:
            np.testing.assert_array_equal(values[name], run.integers[name])
    if run.exact:
        np.testing.assert_array_equal(values[file.graph.output[0].name], run.outputs[0])
    return run.exact


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_the_cases_of_the_reference(case: Case, signed: bool, tmp_path: Path) -> None:
    for seed in range(2):
        g = QdqGraph(seed, dtype=np.int8 if signed else np.uint8)
        case(g)
        agree(written(g, tmp_path / "net.onnx"), samples(g, seed=seed))


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
def test_ties_of_a_sum(signed: bool, tmp_path: Path) -> None:
    r = np.random.default_rng(0)
    for _ in range(10):
        g = QdqGraph(0, dtype=np.int8 if signed else np.uint8)
        a, b = (g.qdq(g.input("batch", 64, name=name), scale=float(r.integers(1, 20) / 100)) for name in ("x", "y"))
        g.output(g.qdq(g.node("Add", [a, b]), scale=float(r.integers(5, 30) / 100)))
        steps = r.integers(-300, 300, (2, 8, 64)) / 200
        assert agree(written(g, tmp_path / "net.onnx"), [x.astype(np.float32) for x in steps])


def model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int]) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * len(shape))
    given = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], given)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


GRID = {"s": np.float32(0.02), "z": np.uint8(110), "s2": np.float32(0.03), "z2": np.uint8(120)}
START = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
END = helper.make_node("DequantizeLinear", ["r", "s2", "z2"], ["y"])


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("QLinearSigmoid", {}),
        ("QLinearLeakyRelu", {"alpha": 0.2}),
        ("QLinearSoftmax", {"axis": -1, "opset": 17}),
        ("QLinearAveragePool", {"kernel_shape": [2, 2], "channels_last": 0}),
        ("QLinearGlobalAveragePool", {"channels_last": 0}),
    ],
)
def test_operators_of_one_tensor(op: str, attributes: dict[str, object], tmp_path: Path) -> None:
    node = helper.make_node(op, ["q", "s", "z", "s2", "z2"], ["r"], name="it", domain="com.microsoft", **attributes)
    onnx.save(model([START, node, END], GRID, [2, 3, 4, 4]), tmp_path / "net.onnx")
    assert agree(tmp_path / "net.onnx", [np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)])


def test_concat_and_products(tmp_path: Path) -> None:
    """QLinearConcat begins with the scale of its result; QLinearMatMul has scales for each column; QGemm without a
    scale of its result gives floats."""
    r = np.random.default_rng(0)
    w = {"w": r.integers(-127, 128, (8, 5)).astype(np.int8), "ws": r.uniform(0.01, 0.02, 5).astype(np.float32)}
    w |= {"wz": np.zeros(5, np.int8), "b": r.integers(-900, 900, 5).astype(np.int32)}
    grid = ["s2", "z2"]
    nodes = [
        START,
        helper.make_node("QLinearMul", ["q", "s", "z", "q", "s", "z", *grid], ["m"], name="m", domain="com.microsoft"),
        helper.make_node(
            "QLinearConcat", [*grid, "q", "s", "z", "m", *grid], ["c"], name="c", domain="com.microsoft", axis=1
        ),
        helper.make_node("QLinearMatMul", ["c", *grid, "w", "ws", "wz", *grid], ["r"], name="mm"),
    ]
    onnx.save(model([*nodes, END], GRID | w, [3, 4]), tmp_path / "net.onnx")
    x = [r.normal(size=(3, 4)).astype(np.float32)]
    assert agree(tmp_path / "net.onnx", x)
    gemm = helper.make_node("QGemm", ["c", *grid, "w", "ws", "wz", "b"], ["y"], name="g", domain="com.microsoft")
    onnx.save(model([*nodes[:-1], gemm], GRID | w, [3, 4]), tmp_path / "net.onnx")
    assert agree(tmp_path / "net.onnx", x)


def test_what_has_no_rule_is_named(tmp_path: Path) -> None:
    node = helper.make_node("QLinearWhere", ["q"] * 9, ["r"], name="it", domain="com.microsoft")
    with pytest.raises(UnsupportedError, match="it: the quantized operator QLinearWhere has no rule here"):
        qdq_of_qoperators(model([START, node, END], GRID, [2, 3]))
    node = helper.make_node("QLinearAdd", ["q", "s", "z", "q"], ["r"], name="it", domain="com.microsoft")
    with pytest.raises(ArtifactError, match=r"it \(QLinearAdd\) has 4 inputs, which is not possible"):
        qdq_of_qoperators(model([START, node, END], GRID, [2, 3]))
    node = helper.make_node(
        "QLinearGlobalAveragePool", ["q", *GRID], ["r"], name="it", domain="com.microsoft", channels_last=1
    )
    with pytest.raises(UnsupportedError, match="has its channels last"):
        qdq_of_qoperators(model([START, node, END], GRID, [2, 3, 4, 4]))


def test_isobits_own_file_is_verified(tmp_path: Path) -> None:
    """It says the same of overflow as the Q/DQ file."""
    net, inputs = small_networks()["residual"]
    prepared = isobit.quantize(net, [(inputs,)], target="onnxruntime-x86")
    isobit.export(prepared, tmp_path / "qdq.onnx")
    isobit.export(prepared, tmp_path / "net.onnx", format="onnx-qoperator")
    assert has_quantized_operators(onnx.load(tmp_path / "net.onnx"))
    certificate = isobit.verify(tmp_path / "net.onnx")
    assert (certificate.verdict, certificate.target) == ("exact", "onnxruntime-x86")
    arithmetic = ENGINE.arithmetic
    risks = [overflow_risks(load_qdq(tmp_path / n), arithmetic) for n in ("net.onnx", "qdq.onnx")]
    assert [(r.kind, r.channels, r.worst) for r in risks[0]] == [(r.kind, r.channels, r.worst) for r in risks[1]]

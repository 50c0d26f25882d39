"""The captured module behaves like a module: ONNX, attributes, names that last."""

import copy
import io

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from graph.capture_nets import CASES, Buffers, Functional, Residual, Shared, inputs
from isobit.graph.capture import capture
from isobit.graph.names import display_name, names
from isobit.graph.ops import FUNCTIONS, KINDS, MEANINGS, MODULES, kinds


def test_names_are_paths_with_numbers_for_repeated_calls() -> None:
    captured = capture(nn.Sequential(Residual(), Residual()), torch.zeros(1, 3, 6, 6))
    named = [name for node, name in names(captured.graph).items() if node.op not in ("placeholder", "output")]
    block = ["conv1", "bn1", "relu", "conv2", "bn2", "add", "relu:2"]
    assert named == [f"0.{n}" for n in block] + [f"1.{n}" for n in block]


def test_names_last_when_the_graph_changes() -> None:
    captured = capture(Shared(), torch.zeros(1, 3, 6, 6))
    before = {n.name: display_name(n) for n in captured.graph.nodes}
    first, second = (n for n in captured.graph.nodes if n.target == "block.2")
    assert (before[first.name], before[second.name]) == ("block.2", "block.2:2")
    first.replace_all_uses_with(first.args[0])
    captured.graph.erase_node(first)
    with captured.graph.inserting_after(next(iter(captured.graph.nodes))) as _:
        new = captured.graph.call_function(torch.relu, (next(iter(captured.graph.nodes)),))
    after = names(captured.graph)
    assert {n.name: name for n, name in after.items() if n is not new} == {
        k: v for k, v in before.items() if k != first.name
    }
    assert after[new] == display_name(new) == "relu"
    assert len(set(after.values())) == len(after)


def test_the_tables_use_documented_kinds() -> None:
    assert set(FUNCTIONS.values()) | {kind for _, kind in MODULES} <= KINDS
    assert set(MEANINGS) == KINDS


def test_functional_layers_have_their_kind() -> None:
    captured = capture(Functional(), torch.zeros(1, 3, 8, 8))
    named = names(captured.graph)
    found = {named[node]: kind for node, kind in kinds(captured).items()}
    assert found["conv.conv"] == "conv"
    assert found["same"] == "conv"
    assert found["norm"] == "batch_norm"
    assert found["norm.act"] == "relu"
    assert found["channels"] == "layer_norm"
    assert found["gamma_batch_norm"] == "batch_norm"
    assert found["relu6"] == "relu6"
    assert found["dropout"] == "dropout"
    assert found["adaptive_avg_pool2d"] == "global_avg_pool"
    assert found["w_linear"] == "linear"
    assert type(captured.get_submodule("same")) is nn.Conv2d
    assert type(captured.get_submodule("w_linear")) is nn.Linear
    assert captured.get_submodule("w_linear").weight is captured.w


def test_attributes_and_constants_follow() -> None:
    net = Buffers()
    net.classes = ["a", "b"]
    captured = capture(net, torch.zeros(1, 4))
    assert captured.classes == ["a", "b"]
    assert captured.classes is not net.classes
    double = copy.deepcopy(captured).double()
    assert {b.dtype for b in double.buffers()} == {torch.float64}
    assert double(torch.zeros(2, 4, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning"
)  # torch.onnx copies its own tree specs
@pytest.mark.parametrize("name", ["residual", "functional", "attention", "buffers"])
def test_onnx_export_with_a_free_batch(name: str) -> None:
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime runs the exported file")
    case = CASES[name]
    captured = capture(case.make(), inputs(case)).eval()
    xs = inputs(case, 2)
    program = torch.onnx.export(
        captured, xs, dynamo=True, dynamic_shapes=[{0: torch.export.Dim("batch")} for _ in xs], verbose=False
    )
    assert program is not None
    file = io.BytesIO()
    onnx.save(program.model_proto, file)
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    xs = inputs(case, 5, seed=3)
    got = session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), xs, strict=True)})
    with torch.no_grad():
        np.testing.assert_allclose(got[0], captured(*xs).numpy(), rtol=1e-4, atol=1e-5)

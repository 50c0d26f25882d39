"""OpenVINO's arithmetic against the real OpenVINO: exact, but for sums: a few steps in a million, by their kind."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from integer.cases import samples
from integer.graphs import QdqGraph
from isobit.core.arithmetic import OPENVINO
from isobit.engines import OpenVino
from isobit.engines.instruction_set import saturates_pairs
from isobit.integer import run_reference
from isobit.integer.interpreter import Reference

pytestmark = [
    pytest.mark.skipif(bool(OpenVino().missing()), reason=OpenVino().missing() or "installed"),
    pytest.mark.skipif(
        saturates_pairs(OpenVino().instruction_set()), reason="pairs of products saturate on this processor"
    ),
]


def conv_relu(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 16, 40, 40))
    g.output(g.qdq(g.node("Relu", [g.conv(x, 16, 32, pads=[1] * 4)]), zero_point=0, scale=0.1))


def conv_relu_inside(g: QdqGraph) -> None:
    """Rounded for the next convolution, by a factor whose inverse's inverse is another float32."""
    scale = np.float32(0.13)
    slope = np.float32(255) / (np.float32(255) * scale)
    assert np.float32(1) / (np.float32(1) / slope) != slope
    x = g.qdq(g.input("batch", 16, 64, 64))
    y = g.qdq(g.node("Relu", [g.conv(x, 16, 64, pads=[1] * 4)]), zero_point=0, scale=0.13)
    g.output(g.qdq(g.conv(y, 64, 8), scale=0.002))


def depthwise_relu(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 32, 40, 40))
    g.output(g.qdq(g.node("Relu", [g.conv(x, 32, 32, group=32)]), zero_point=0, scale=0.04))


def conv(g: QdqGraph) -> None:
    g.output(g.qdq(g.conv(g.qdq(g.input("batch", 16, 40, 40)), 16, 32), scale=0.2))


def gemm(g: QdqGraph) -> None:
    g.output(g.qdq(g.gemm(g.qdq(g.input("batch", 128)), 128, 256), scale=0.5))


def residual(g: QdqGraph) -> None:
    """The branch that feeds the Add stays in float: OpenVINO adds the residual inside the convolution."""
    x = g.qdq(g.input("batch", 3, 32, 32))
    a = g.qdq(g.node("Relu", [g.conv(x, 3, 16, pads=[1] * 4)]), zero_point=0, scale=0.06)
    g.output(g.qdq(g.node("Relu", [g.node("Add", [g.conv(a, 16, 16), g.crop(a)])]), zero_point=0, scale=0.2))


def residual_of_the_own_input(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 3, 32, 32))
    a = g.qdq(g.node("Relu", [g.conv(x, 3, 16, pads=[1] * 4)]), zero_point=0, scale=0.06)
    g.output(g.qdq(g.node("Relu", [g.node("Add", [g.conv(a, 16, 16, pads=[1] * 4), a])]), zero_point=0, scale=0.2))


def residual_behind_a_quantizer(g: QdqGraph) -> None:
    """The branch is rounded by the file, and only clipped by OpenVINO."""
    x = g.qdq(g.input("batch", 3, 32, 32))
    a = g.qdq(g.node("Relu", [g.conv(x, 3, 16, pads=[1] * 4)]), zero_point=0, scale=0.06)
    b = g.qdq(g.conv(a, 16, 16), scale=0.4, zero_point=120)
    g.output(g.qdq(g.node("Relu", [g.node("Add", [b, g.crop(a)])]), zero_point=0, scale=0.2))


def residual_with_zero_points(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 3, 32, 32))
    a = g.qdq(g.conv(x, 3, 16, pads=[1] * 4), zero_point=131, scale=0.06)
    b = g.qdq(g.conv(a, 16, 16), scale=0.4, zero_point=120)
    g.output(g.qdq(g.node("Add", [b, g.crop(a)]), zero_point=127, scale=0.42))


def signed_residual(g: QdqGraph) -> None:
    g.dtype, g.fixed_zero_point = np.int8, 0
    x = g.qdq(g.input("batch", 3, 32, 32))
    a = g.qdq(g.conv(x, 3, 16, pads=[1] * 4), scale=0.06)
    g.output(g.qdq(g.node("Add", [g.conv(a, 16, 16), g.crop(a)]), scale=0.09))


def add(g: QdqGraph) -> None:
    a, b = g.qdq(g.input("batch", 64, 64)), g.qdq(g.input("batch", 64, 64, name="y"))
    g.output(g.qdq(g.node("Add", [a, b])))


def add_where_results_are_near_the_middle(g: QdqGraph) -> None:
    """All steps are simple fractions of another: many sums lie in the middle of two levels, but for rounding."""
    a = g.qdq(g.input("batch", 64, 64), scale=0.0123, zero_point=0)
    b = g.qdq(g.input("batch", 64, 64, name="y"), scale=0.0123 * 0.3, zero_point=0)
    g.output(g.qdq(g.node("Add", [a, b]), scale=0.0123 * 0.4, zero_point=0))


def global_average(g: QdqGraph) -> None:
    g.output(g.qdq(g.node("GlobalAveragePool", [g.qdq(g.input("batch", 64, 7, 7))])))


def global_average_near_the_middle(g: QdqGraph) -> None:
    x = g.qdq(g.input("batch", 64, 4, 4), scale=0.0123, zero_point=17)
    g.output(g.qdq(g.node("GlobalAveragePool", [x]), scale=0.0123 * 0.25))


ALLOWED = {
    conv_relu: 0.0,
    conv_relu_inside: 0.0,
    depthwise_relu: 0.0,
    conv: 0.0,
    gemm: 0.0,
    residual: 0.0,
    residual_of_the_own_input: 0.0,
    residual_behind_a_quantizer: 1e-6,
    residual_with_zero_points: 1e-5,
    signed_residual: 5e-5,
    add: 1e-4,
    add_where_results_are_near_the_middle: 0.0,
    global_average: 0.0,
    global_average_near_the_middle: 0.0,
}


@pytest.mark.parametrize("case", ALLOWED, ids=lambda case: case.__name__)
def test_share_of_results_that_differ(case: Callable[[QdqGraph], None], tmp_path: Path) -> None:
    differ = total = 0
    for seed in range(4):
        g = QdqGraph(seed)
        case(g)
        path, inputs = g.save(tmp_path / "net.onnx"), samples(g, batch=4, seed=seed)
        reference = run_reference(path, inputs, OPENVINO)
        (engine,) = OpenVino().load(path).run(inputs)
        steps = np.rint(np.abs(engine - reference.outputs[0]) / g.constants[g.nodes[-1].input[1]])
        assert reference.exact and steps.max() <= 1
        differ, total = differ + int(np.count_nonzero(steps)), total + steps.size
    assert differ <= ALLOWED[case] * total


@pytest.mark.parametrize("case", [residual, residual_behind_a_quantizer], ids=lambda case: case.__name__)
def test_a_sum_is_one_step_and_the_add_stays_in_the_plan(case: Callable[[QdqGraph], None], tmp_path: Path) -> None:
    g = QdqGraph(0)
    case(g)
    plan = Reference(g.save(tmp_path / "net.onnx"), OPENVINO).plan
    (add,) = (s for s in plan.steps if s.node.op == "Add")
    (summed,) = (s for s in plan.steps if s.rule == "summed")
    assert (add.rule, summed.node.op, plan.steps.index(summed) + 1) == ("absorbed", "Conv", plan.steps.index(add))
    assert len({id(s.node) for s in plan.steps}) == len(plan.steps)

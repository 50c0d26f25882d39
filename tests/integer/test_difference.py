from pathlib import Path

import numpy as np
import pytest

from integer.cases import residual_network, samples
from integer.graphs import QdqGraph
from isobit.core.arithmetic import GEMMLOWP
from isobit.core.errors import ArtifactError
from isobit.engines import Fake
from isobit.integer import first_difference, quantized_tensors, run_reference


def network() -> tuple[QdqGraph, list[np.ndarray]]:
    g = QdqGraph(4)
    residual_network(g)
    return g, samples(g, batch=4)


def test_finds_the_op_that_was_changed() -> None:
    """Whatever tensor is disturbed, its op is named, and the ones before are not."""
    g, inputs = network()
    model = g.model()
    names = quantized_tensors(model)
    integers = run_reference(model, inputs).integers
    assert tuple(integers) == names
    assert first_difference(model, integers, dict(integers)) is None
    producers = {n.output[0]: n for n in g.nodes}
    for i, name in enumerate(names):
        other = dict(integers)
        for later in names[i:]:
            other[later] = other[later].copy()
        other[name].flat[:3] ^= 3
        found = first_difference(model, integers, other)
        assert found is not None and (found.differ, found.total) == (3, integers[name].size)
        assert 1 <= found.largest <= 3
        node = producers[name]
        while node.op_type in ("QuantizeLinear", "Relu") and node.input[0] in producers:
            node = producers[node.input[0]]
        assert found.name == node.name and found.op == node.op_type
        assert found.rule


def test_names_the_rule() -> None:
    g, inputs = network()
    model = g.model()
    integers = run_reference(model, inputs).integers
    add = next(n for n in g.nodes if n.op_type == "Add")
    relu = next(n for n in g.nodes if add.output[0] in n.input)
    name = next(n for n in g.nodes if relu.output[0] in n.input).output[0]
    other = dict(integers) | {name: integers[name] ^ 1}
    found = first_difference(model, integers, other)
    assert found is not None and found.rule == "Add with integers, FusedRatios()"
    found = first_difference(model, integers, other, GEMMLOWP)
    assert found is not None and found.rule == "Add with integers, WidenedSum(bits=20)"


def test_the_float_simulation_parts_from_the_reference_at_a_named_op(tmp_path: Path) -> None:
    g, _ = network()
    path = g.save(tmp_path / "net.onnx")
    names = quantized_tensors(path)
    session = Fake().load(path, expose=names)
    for seed in range(20):
        inputs = samples(g, batch=8, seed=seed)
        simulated = dict(zip(session.outputs, session.run(inputs), strict=True))
        found = first_difference(path, run_reference(path, inputs).integers, simulated)
        if found is not None:
            break
    assert found is not None and found.largest == 1 and found.differ < found.total / 100


def test_nothing_to_compare() -> None:
    g, inputs = network()
    integers = run_reference(g.model(), inputs).integers
    with pytest.raises(ArtifactError, match="expose"):
        first_difference(g.model(), integers, {})
    name = next(iter(integers))
    with pytest.raises(ArtifactError, match="shape"):
        first_difference(g.model(), integers, {name: integers[name][:1]})

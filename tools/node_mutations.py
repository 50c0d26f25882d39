"""Ways to break the graph of an ONNX file: nodes, their names, inputs and attributes, and graphs inside them."""

from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from mutations import Change, Random, node, pick


def reversed_nodes(model: ModelProto, rng: Random, _: Path) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def cycle(model: ModelProto, rng: Random, _: Path) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def own_output(model: ModelProto, rng: Random, _: Path) -> None:
    n = node(model, rng)
    n.input[0] = n.output[0]


def name_twice(model: ModelProto, rng: Random, _: Path) -> None:
    first, second = rng.choice(len(model.graph.node), 2, replace=False)
    model.graph.node[int(second)].output[0] = model.graph.node[int(first)].output[0]


def double_node(model: ModelProto, rng: Random, _: Path) -> None:
    model.graph.node.append(node(model, rng))


def double_output(model: ModelProto, rng: Random, _: Path) -> None:
    model.graph.output.append(model.graph.output[0])


def removed_node(model: ModelProto, rng: Random, _: Path) -> None:
    model.graph.node.remove(node(model, rng))


def set_node(field: str, *values: str) -> Change:
    def change(model: ModelProto, rng: Random, _: Path) -> None:
        setattr(node(model, rng), field, pick(rng, list(values)))

    return change


def swapped_inputs(model: ModelProto, rng: Random, _: Path) -> None:
    n = pick(rng, [n for n in model.graph.node if len(n.input) > 1])
    names = list(n.input)[::-1]
    del n.input[:]
    n.input.extend(names)


def more_inputs(model: ModelProto, rng: Random, _: Path) -> None:
    n = node(model, rng)
    n.input.extend([n.input[0]] * int(rng.integers(1, 30)))


def fewer_inputs(model: ModelProto, rng: Random, _: Path) -> None:
    n = node(model, rng)
    del n.input[-1:]


def other_input(model: ModelProto, rng: Random, _: Path) -> None:
    n = node(model, rng)
    names = [t.name for t in model.graph.initializer] + [o for m in model.graph.node for o in m.output]
    n.input[int(rng.integers(len(n.input)))] = str(pick(rng, names))


def set_attribute(name: str, *values: object, ops: tuple[str, ...] = ("Conv",)) -> Change:
    def change(model: ModelProto, rng: Random, _: Path) -> None:
        n = node(model, rng, *ops)
        kept = [a for a in n.attribute if a.name != name]
        del n.attribute[:]
        n.attribute.extend([*kept, helper.make_attribute(name, pick(rng, list(values)))])

    return change


def double_attribute(model: ModelProto, rng: Random, _: Path) -> None:
    n = pick(rng, [n for n in model.graph.node if n.attribute])
    n.attribute.append(n.attribute[0])


def untyped_attribute(model: ModelProto, rng: Random, _: Path) -> None:
    n = pick(rng, [n for n in model.graph.node if n.attribute])
    n.attribute[0].type = pick(rng, [0, 1, 4, 5, 11, 99][:5])


def body(depth: int) -> GraphProto:
    inner = helper.make_node("Identity", ["cond_in"], ["cond_out"])
    nodes = [inner]
    if depth:
        nodes.append(helper.make_node("If", ["cond_in"], ["z"], then_branch=branch(depth), else_branch=branch(0)))
    value = helper.make_tensor_value_info
    inputs = [value("i", TensorProto.INT64, []), value("cond_in", TensorProto.BOOL, [])]
    return helper.make_graph(nodes, "body", inputs, [value("cond_out", TensorProto.BOOL, [])])


def branch(depth: int) -> GraphProto:
    nodes = [helper.make_node("Constant", [], ["z"], value=numpy_helper.from_array(np.float32(1), "one"))]
    if depth:
        nodes = [helper.make_node("If", ["true"], ["z"], then_branch=branch(depth - 1), else_branch=branch(0))]
    return helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [])])


def endless_loop(model: ModelProto, rng: Random, _: Path) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "times"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    model.graph.node.insert(0, helper.make_node("Loop", ["times", "true"], [], body=body(0)))


def deep_branches(model: ModelProto, rng: Random, _: Path) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    deep = branch(int(rng.integers(2, 20)))
    model.graph.node.insert(0, helper.make_node("If", ["true"], ["z0"], then_branch=deep, else_branch=branch(0)))


def in_front(op: str, *inputs: object, **attributes: object) -> Change:
    """One op more, whose result is as large as its constants say; its maximum is added to the network's input.

    `inputs` are arrays, "x" for the network's input, or "" for none.
    """

    def change(model: ModelProto, rng: Random, _: Path) -> None:
        x, names = model.graph.input[0].name, []
        for i, value in enumerate(inputs):
            if isinstance(value, str):
                names.append(x if value else "")
                continue
            names.append(f"bomb_{i}")
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), names[-1]))
        for n in model.graph.node:
            for i, name in enumerate(n.input):
                n.input[i] = "bombed" if name == x else name
        added = [
            helper.make_node(op, names, ["bomb"], name="bomb", **attributes),
            helper.make_node("ReduceMax", ["bomb"], ["bomb_max"], keepdims=0),
            helper.make_node("Cast", ["bomb_max"], ["bomb_float"], to=TensorProto.FLOAT),
            helper.make_node("Add", [x, "bomb_float"], ["bombed"]),
        ]
        nodes = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*added, *nodes])

    return change


def laughs(model: ModelProto, rng: Random, _: Path) -> None:
    """Each function calls the one before twice: 2^40 ops."""
    opset = [helper.make_opsetid("", 21), helper.make_opsetid("ha", 1)]
    for i in range(40):
        op, domain = (f"f{i - 1}", "ha") if i else ("Relu", "")
        calls = [
            helper.make_node(op, ["a"], ["b"], domain=domain), helper.make_node(op, ["b"], ["c"], domain=domain)
        ]  # fmt: skip
        model.functions.append(helper.make_function("ha", f"f{i}", ["a"], ["c"], calls, opset))
    _call(model, "f39")


def recursion(model: ModelProto, rng: Random, _: Path) -> None:
    opset = [helper.make_opsetid("", 21), helper.make_opsetid("ha", 1)]
    for name, other in (("f", "g"), ("g", "f")):
        model.functions.append(
            helper.make_function("ha", name, ["a"], ["c"], [helper.make_node(other, ["a"], ["c"], domain="ha")], opset)
        )
    _call(model, "f")


def _call(model: ModelProto, function: str) -> None:
    model.opset_import.append(helper.make_opsetid("ha", 1))
    x = model.graph.input[0].name
    for n in model.graph.node:
        for i, name in enumerate(n.input):
            n.input[i] = "called" if name == x else name
    model.graph.node.insert(0, helper.make_node(function, [x], ["called"], domain="ha"))

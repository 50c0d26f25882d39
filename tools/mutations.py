"""Ways to break an ONNX file: each takes a model and a source of random numbers and changes the model, or its bytes.

`tools/fuzz_files.py` calls them. `MUTATIONS` lists them by kind; `write` gives the file.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Random = np.random.Generator
Change = Callable[[ModelProto, Random, Path], bytes | None]
OUTSIDE = "outside"
"""The folder, beside that of the file, that nothing may read."""


@dataclass(frozen=True, slots=True)
class Mutation:
    kind: str
    name: str
    change: Change


def write(mutation: Mutation, base: bytes, seed: int, folder: Path) -> Path:
    """The mutated file, alone in `folder`."""
    folder.mkdir()
    model = ModelProto()
    model.ParseFromString(base)
    content = mutation.change(model, np.random.default_rng(seed), folder)
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString() if content is None else content)
    return path


def pick(rng: Random, items: list[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def tensor(model: ModelProto, rng: Random, *kinds: int) -> TensorProto:
    """An initializer with several numbers, of one of these types if any are named."""
    found = [t for t in model.graph.initializer if t.dims and (not kinds or t.data_type in kinds)]
    return pick(rng, found)


def node(model: ModelProto, rng: Random, *ops: str) -> NodeProto:
    found = [n for n in model.graph.node if not ops or n.op_type in ops]
    return pick(rng, found or list(model.graph.node))


def constant(model: ModelProto, name: str) -> TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


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


def input_sizes(*sizes: int) -> Change:
    def change(model: ModelProto, rng: Random, _: Path) -> None:
        dims = model.graph.input[0].type.tensor_type.shape.dim
        for size, dim in zip(sizes, list(dims)[::-1], strict=False):
            dim.dim_value = size

    return change


def input_type(kind: int) -> Change:
    def change(model: ModelProto, rng: Random, _: Path) -> None:
        model.graph.input[0].type.tensor_type.elem_type = kind

    return change


def sequence_input(model: ModelProto, rng: Random, _: Path) -> None:
    kind = model.graph.input[0].type
    kind.sequence_type.elem_type.tensor_type.elem_type = TensorProto.FLOAT


def nested_types(model: ModelProto, rng: Random, _: Path) -> bytes:
    inner = b""
    for _i in range(3_000):
        inner = b"\x22" + _varint(len(inner) + len(_varint(len(inner))) + 1) + b"\x0a" + _varint(len(inner)) + inner
    value = b"\x0a\x01x\x12" + _varint(len(inner)) + inner
    graph = b"\x5a" + _varint(len(value)) + value
    return model.SerializeToString() + b"\x3a" + _varint(len(graph)) + graph


def output_shape(model: ModelProto, rng: Random, _: Path) -> None:
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(model.graph.output[0].name, 1, [7, 7, 7, 7]))


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


def many(field: str, count: int) -> Change:
    """Repeat an empty message of the graph or the model."""
    number = {"node": (7, 1), "initializer": (7, 5), "metadata": (0, 14), "value_info": (7, 13)}[field]

    def change(model: ModelProto, rng: Random, _: Path) -> bytes:
        graph, inner = number
        repeated = bytes([inner << 3 | 2, 0]) * count
        part = repeated if not graph else bytes([graph << 3 | 2]) + _varint(len(repeated)) + repeated
        return model.SerializeToString() + part

    return change


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def metadata(key: str, value: str) -> Change:
    def change(model: ModelProto, rng: Random, _: Path) -> None:
        model.metadata_props.add(key=key, value=value)

    return change


def renamed(text: str) -> Change:
    def change(model: ModelProto, rng: Random, _: Path) -> None:
        n = node(model, rng, "Conv", "Gemm", "Add")
        n.name = text

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


def opset(version: int | None) -> Change:
    def change(model: ModelProto, rng: Random, _: Path) -> None:
        if version is None:
            del model.opset_import[:]
        else:
            model.opset_import[0].version = version

    return change


def flipped(count: int) -> Change:
    def change(model: ModelProto, rng: Random, _: Path) -> bytes:
        content = bytearray(model.SerializeToString())
        for at in rng.integers(len(content), size=count):
            content[at] ^= 1 << int(rng.integers(8))
        return bytes(content)

    return change


def flipped_outside_data(count: int) -> Change:
    """Flips among the ops and their attributes, where nearly every bit has a meaning."""

    def change(model: ModelProto, rng: Random, _: Path) -> bytes:
        content = bytearray(model.SerializeToString())
        spots = [content.find(n.SerializeToString()) for n in model.graph.node]
        for _i in range(count):
            k = int(rng.integers(len(spots)))
            at = spots[k] + int(rng.integers(model.graph.node[k].ByteSize()))
            content[at] ^= 1 << int(rng.integers(8))
        return bytes(content)

    return change


def truncated(model: ModelProto, rng: Random, _: Path) -> bytes:
    content = model.SerializeToString()
    return content[: int(rng.integers(len(content)))]


def noise(model: ModelProto, rng: Random, _: Path) -> bytes:
    content = bytearray(model.SerializeToString())
    at = int(rng.integers(len(content)))
    content[at : at + 64] = rng.bytes(int(rng.integers(0, 128)))
    return bytes(content)

"""Ways to break an ONNX file as a whole: inputs and outputs, lists, texts, versions, bytes."""

from pathlib import Path

from onnx import ModelProto, TensorProto, helper

from mutations import Change, Random, node


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

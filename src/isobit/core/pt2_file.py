"""PT2 archives, as `torch.export.save` writes them, read as data: nothing in them is unpickled or evaluated.

`torch.export.load` does both: it unpickles example inputs, and weights where the file says so, with
`torch.load(weights_only=False)`, hands the expressions of sizes to `sympy.sympify`, which evaluates them, and runs the
guards, which are Python. A file made for it may therefore run any program. This reader takes the graph (JSON) and the
raw bytes of the tensors, knows no pickle, and names what it does not know.

Format: schema version 8 of torch/_export/serde/schema.py, measured with torch 2.13.
"""

import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isobit.core.errors import ArtifactError, UnsupportedError
from isobit.core.onnx_file import first_line

SUFFIX = ".pt2"
METADATA = "isobit.json"
"""The extra file that holds isobit's own keys."""

SCHEMA = 8
"""The major version of the schema."""

LARGEST = (1 << 31) - 1
"""Bytes of a file at most."""

DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16,
    7: torch.float32, 8: torch.float64, 12: torch.bool, 28: torch.uint16,
}  # fmt: skip
"""The schema's numbers of the types that isobit knows."""


CHECKS = frozenset(f"torch.ops.aten.{name}.default" for name in ("_assert_tensor_metadata", "_assert_scalar"))
"""Calls without a result, which check what PyTorch assumed."""


class Ref(NamedTuple):
    """The result of a call, an input, or a constant, by its name."""

    name: str


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """One op: its target such as `aten.conv2d.default`, its arguments by name, and the names of its results."""

    target: str
    arguments: dict[str, Any]
    keywords: frozenset[str]
    results: tuple[str, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Input:
    """An input of the program; None is a size that may change."""

    name: str
    dtype: torch.dtype
    sizes: tuple[int | None, ...]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Pt2:
    """An exported program: `constants` are its parameters and buffers, by the names that the graph gives them.

    `names` are the names that the module had for them, `shapes` the sizes of all tensors, None where one may change.
    """

    inputs: tuple[Input, ...]
    constants: dict[str, Tensor]
    names: dict[str, str]
    calls: tuple[Call, ...]
    outputs: tuple[str, ...]
    shapes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def is_pt2(path: Path | str) -> bool:
    """Whether a path names a PT2 archive, by its suffix."""
    return Path(path).suffix == SUFFIX


def read_pt2(path: Path | str) -> Pt2:
    """The program in a file.

    Raises ArtifactError for one that is truncated, damaged or foreign, or that holds pickled weights or objects,
    UnsupportedError for what isobit does not know.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"there is no file {path}")
    if path.stat().st_size > LARGEST:
        raise ArtifactError(f"{path} has more than the 2 GiB that isobit reads")
    try:
        with zipfile.ZipFile(path) as archive:
            return _program(_Records(path, archive))
    except (ArtifactError, UnsupportedError):
        raise
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ArtifactError(f"{path} is truncated, or no PT2 archive: {first_line(error)}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError, RecursionError,
            RuntimeError, OSError) as error:  # fmt: skip
        raise ArtifactError(f"{path} is a damaged PT2 archive: {first_line(error)}") from error


class _Records:
    """The records of an archive, which all lie in one folder of it, as they are."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self._path, self._archive = path, archive
        listed = archive.infolist()
        names = [info.filename for info in listed]
        self.root = names[0].split("/")[0] if names else ""
        if len(set(names)) != len(names):
            raise ArtifactError(f"{path} holds two records of one name")
        if any(info.compress_type != zipfile.ZIP_STORED for info in listed):
            raise ArtifactError(f"{path} holds compressed records, and PT2 archives have none")
        self._names = set(names)
        if self.maybe("archive_format") != b"pt2":
            raise ArtifactError(f"{path} is no PT2 archive: save it with torch.export.save")
        if self.maybe("byteorder") not in (None, b"little"):
            raise ArtifactError(f"{path} was written on a machine with another order of bytes")

    def maybe(self, name: str) -> bytes | None:
        """A record, None where there is none."""
        whole = f"{self.root}/{name}"
        return self._archive.read(whole) if whole in self._names else None

    def bytes(self, name: str) -> bytes:
        """A record. Raises ArtifactError."""
        found = self.maybe(name)
        if found is None:
            raise ArtifactError(f"{self._path} lacks the record {name}: it is truncated, or of another version")
        return found

    def json(self, name: str) -> dict[str, Any]:
        """A record as JSON."""
        found = json.loads(self.bytes(name))
        if not isinstance(found, dict):
            raise ArtifactError(f"{self._path}: the record {name} is no table")
        return found


def _program(records: _Records) -> Pt2:
    whole = records.json("models/model.json")
    version = whole["schema_version"]["major"]
    if version != SCHEMA:
        raise UnsupportedError(f"the file has version {version} of PyTorch's schema, and isobit reads {SCHEMA}")
    graph, signature = whole["graph_module"]["graph"], whole["graph_module"]["signature"]
    inputs, constants, names = _inputs(graph, signature, _tensors(records))
    outputs = []
    for spec in signature["output_specs"]:
        kind = next(iter(spec))
        if kind != "user_output" or "as_tensor" not in spec[kind]["arg"]:
            raise UnsupportedError(f"the program has an output of the kind {kind}, and isobit knows tensors alone")
        outputs.append(str(spec[kind]["arg"]["as_tensor"]["name"]))
    calls = tuple(_call(node) for node in graph["nodes"] if node["target"] not in CHECKS)
    known = {i.name for i in inputs} | constants.keys()
    for call in calls:
        for name in _read(call.arguments):
            if name not in known:
                raise ArtifactError(f"{call.results[0]} ({call.target}) reads {name}, which nothing gives")
        if known & set(call.results):
            raise ArtifactError(f"{call.results[0]} ({call.target}) gives a result that is there already")
        known |= set(call.results)
    if not outputs or not set(outputs) <= known:
        raise ArtifactError("the program has no outputs, or one that nothing gives")
    shapes = {str(name): tuple(_size(s) for s in meta["sizes"]) for name, meta in graph["tensor_values"].items()}
    return Pt2(
        inputs=inputs, constants=constants, names=names, calls=calls, outputs=tuple(outputs), shapes=shapes,
        metadata=_metadata(records),
    )  # fmt: skip


def _inputs(
    graph: dict[str, Any], signature: dict[str, Any], tensors: dict[str, Tensor]
) -> tuple[tuple[Input, ...], dict[str, Tensor], dict[str, str]]:
    """The inputs, the constants by their names in the graph, and the module's names of those."""
    inputs, constants, names = [], {}, {}
    keys = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
    for spec in signature["input_specs"]:
        (kind, of) = next(iter(spec.items()))
        if kind == "user_input" and "as_tensor" in of["arg"]:
            name = str(of["arg"]["as_tensor"]["name"])
            meta = graph["tensor_values"][name]
            inputs.append(Input(name, dtype_of(meta["dtype"]), tuple(_size(s) for s in meta["sizes"])))
        elif kind in keys:
            name, of_module = str(of["arg"]["name"]), str(of[keys[kind]])
            if of_module not in tensors:
                raise ArtifactError(f"the file lacks the tensor {of_module}")
            constants[name], names[name] = tensors[of_module], of_module
        else:
            raise UnsupportedError(f"the program has an input of the kind {kind}, and isobit knows tensors alone")
    if len({i.name for i in inputs} | constants.keys()) != len(signature["input_specs"]):
        raise ArtifactError("two inputs of the program have one name")
    return tuple(inputs), constants, names


def _tensors(records: _Records) -> dict[str, Tensor]:
    """Parameters, buffers and constants by the names that the module has for them."""
    found: dict[str, Tensor] = {}
    for folder, config in (("weights", "model_weights_config"), ("constants", "model_constants_config")):
        for name, entry in records.json(f"data/{folder}/{config}.json")["config"].items():
            if entry["use_pickle"] or entry["tensor_meta"] is None:
                raise ArtifactError(
                    f"{name} is pickled, and to read it could run any program: save a program whose weights are "
                    "plain tensors"
                )
            if not str(entry["path_name"]).replace("_", "").isalnum():
                raise ArtifactError(f"{name} lies at {entry['path_name']!r}, which is no record's name")
            found[name] = _tensor(records.bytes(f"data/{folder}/{entry['path_name']}"), entry["tensor_meta"], name)
    return found


def _tensor(data: bytes, meta: dict[str, Any], name: str) -> Tensor:
    kind = dtype_of(meta["dtype"])
    sizes, strides = ([int(s["as_int"]) for s in meta[key]] for key in ("sizes", "strides"))
    offset = int(meta["storage_offset"]["as_int"])
    if len(sizes) != len(strides) or min([*sizes, *strides, offset], default=0) < 0:
        raise ArtifactError(f"{name}: sizes {sizes} and strides {strides} do not fit together")
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    if 0 not in sizes and (last + 1) * kind.itemsize > len(data):
        raise ArtifactError(f"{name} needs {(last + 1) * kind.itemsize:,} bytes and the file has {len(data):,}")
    if 0 in sizes:
        return torch.empty(sizes, dtype=kind)
    whole = torch.frombuffer(bytearray(data[: len(data) // kind.itemsize * kind.itemsize]), dtype=kind)
    if torch.Size(sizes).numel() > max(whole.numel(), 1):
        raise ArtifactError(f"{name} has more elements than the file holds")
    return torch.as_strided(whole, sizes, strides, offset).contiguous()


def dtype_of(number: Any) -> torch.dtype:
    """The type of a number of the schema. Raises UnsupportedError."""
    if number not in DTYPES:
        raise UnsupportedError(f"the program has a tensor of the schema's type {number}, which isobit does not know")
    return DTYPES[number]


def _size(size: dict[str, Any]) -> int | None:
    return int(size["as_int"]) if "as_int" in size else None


def _call(node: dict[str, Any]) -> Call:
    target = str(node["target"]).removeprefix("torch.ops.")
    results: list[str] = []
    for output in node["outputs"]:
        kind, of = next(iter(output.items()))
        match kind:
            case "as_tensor":
                results.append(str(of["name"]))
            case "as_sym_int" if "as_name" in of:
                results.append(str(of["as_name"]))
            case _:
                raise UnsupportedError(f"{target} gives a result of the kind {kind[3:]}, which isobit does not know")
    if not results:
        raise UnsupportedError(f"a call of {target} gives no result, and isobit does not know what it does")
    arguments = {str(i["name"]): _argument(i["arg"], target) for i in node["inputs"]}
    keywords = frozenset(str(i["name"]) for i in node["inputs"] if i.get("kind") == 2)
    return Call(target, arguments, keywords, tuple(results))


def _argument(arg: dict[str, Any], target: str) -> Any:
    """A value of an argument; tensors and sizes of the graph are a `Ref`."""
    kind, value = next(iter(arg.items()))
    if kind in _PLAIN:
        return [_PLAIN[kind](v) for v in value] if kind.endswith("s") else _PLAIN[kind](value)
    match kind:
        case "as_tensor":
            return Ref(str(value["name"]))
        case "as_tensors":
            return [Ref(str(v["name"])) for v in value]
        case "as_optional_tensor" | "as_sym_int":
            return _optional(value)
        case "as_optional_tensors" | "as_sym_ints":
            return [_optional(v) for v in value]
        case "as_scalar_type":
            return dtype_of(value)
        case "as_none" | "as_memory_format" | "as_layout" | "as_device":
            return None  # all of isobit's tensors are dense and on the CPU
    raise UnsupportedError(f"{target} has an argument of the kind {kind[3:]}, which isobit does not know")


_PLAIN: dict[str, type] = {
    "as_int": int, "as_ints": int, "as_float": float, "as_floats": float, "as_bool": bool, "as_bools": bool,
    "as_string": str,
}  # fmt: skip
"""Numbers and texts, and lists of them."""


def _optional(value: dict[str, Any]) -> Any:
    if "as_tensor" in value:
        return Ref(str(value["as_tensor"]["name"]))
    if "as_name" in value:
        return Ref(str(value["as_name"]))
    return int(value["as_int"]) if "as_int" in value else None


def _read(arguments: dict[str, Any]) -> list[str]:
    """The names that arguments refer to."""
    found = []
    for value in arguments.values():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Ref):
                found.append(each.name)
    return found


def _metadata(records: _Records) -> dict[str, str]:
    """isobit's own keys; none in a file of others."""
    data = records.maybe(f"extra/{METADATA}")
    if data is None:
        return {}
    found = json.loads(data)
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ArtifactError("isobit's metadata in the file are damaged: export it again")
    return found

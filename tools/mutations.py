"""What a mutation of an ONNX file is: it takes a model and random numbers, and changes the model or its bytes.

`tensor_mutations`, `node_mutations` and `file_mutations` hold them, `mutation_table` lists them by kind, and
`tools/fuzz_files.py` runs them; `write` gives the file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto

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

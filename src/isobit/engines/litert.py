"""LiteRT (TensorFlow Lite) on the CPU: XNNPACK, or the reference kernels that define the format."""

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from isobit.core.arithmetic import LITERT, LITERT_REFERENCE, Arithmetic
from isobit.core.errors import ArtifactError, EngineError, MissingExtraError
from isobit.core.litert_check import MOVES, check_litert, kind_of
from isobit.core.litert_file import dtypes, read_litert, serialized, unique_names
from isobit.core.records import Kernel
from isobit.engines.base import failed, refused
from isobit.engines.instruction_set import instruction_set


@dataclass(frozen=True, kw_only=True, slots=True)
class LiteRt:
    """Settings of LiteRT. `kernels` are those of XNNPACK, with LiteRT's own where it has none, or the reference's."""

    threads: int = 1
    kernels: Literal["xnnpack", "reference"] = "xnnpack"

    @property
    def name(self) -> str:
        """See Engine."""
        return "litert" if self.kernels == "xnnpack" else "litert-reference"

    @property
    def format(self) -> str:
        """See Engine."""
        return "litert"

    def missing(self) -> str:
        """See Engine."""
        return "" if importlib.util.find_spec("ai_edge_litert") else str(MissingExtraError("LiteRT", "litert"))

    def version(self) -> str:
        """See Engine."""
        self._module()
        return f"ai-edge-litert {version('ai-edge-litert')}"

    def instruction_set(self) -> str:
        """What the processor has; XNNPACK chooses among it and has no pairs that saturate."""
        return instruction_set(onednn=False)

    @property
    def arithmetic(self) -> Arithmetic:
        """Float multipliers, or fixed-point ones in the reference."""
        return LITERT if self.kernels == "xnnpack" else LITERT_REFERENCE

    def load(self, path: Path | str, *, expose: Sequence[str] = ()) -> "LiteRtSession":
        """See Engine."""
        interpreter = self._module()
        try:
            model = read_litert(path)
            check_litert(model)
        except ArtifactError as error:
            raise EngineError(str(error)) from error
        outputs = _expose(model, expose)
        resolvers = interpreter.OpResolverType
        resolver = resolvers.AUTO if self.kernels == "xnnpack" else resolvers.BUILTIN_REF
        try:
            with _quiet():
                loaded = interpreter.Interpreter(
                    model_content=serialized(model) if expose else Path(path).read_bytes(),
                    num_threads=self.threads,
                    experimental_op_resolver_type=resolver,
                )
                loaded.allocate_tensors()
        except Exception as error:
            raise refused("LiteRT", path, error) from error
        return LiteRtSession(Path(path), model, loaded, outputs)

    def _module(self) -> Any:
        if self.missing():
            raise MissingExtraError("LiteRT", "litert")
        from ai_edge_litert import interpreter

        return interpreter


def reference_kernels() -> LiteRt:
    """The kernels that define the format: slow, and the same on every machine."""
    return LiteRt(kernels="reference")


@final
class LiteRtSession:
    """A file in LiteRT."""

    def __init__(self, path: Path, model: Any, interpreter: Any, outputs: tuple[str, ...]) -> None:
        self._path, self._model, self._interpreter, self._outputs = path, model, interpreter, outputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """See Session."""
        return self._outputs

    def run(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See Session."""
        wanted = self._interpreter.get_input_details()
        if len(inputs) != len(wanted):
            names = ", ".join(w["name"] for w in wanted)
            raise EngineError(f"the file takes {len(wanted)} inputs ({names}), got {len(inputs)}")
        for want, x in zip(wanted, inputs, strict=True):
            self._check(want, x)
        try:
            if any(tuple(w["shape"]) != x.shape for w, x in zip(wanted, inputs, strict=True)):
                for want, x in zip(wanted, inputs, strict=True):
                    self._interpreter.resize_tensor_input(want["index"], x.shape)
                self._interpreter.allocate_tensors()
            for want, x in zip(wanted, inputs, strict=True):
                self._interpreter.set_tensor(want["index"], np.ascontiguousarray(x))
            self._interpreter.invoke()
            found = [self._interpreter.get_tensor(d["index"]) for d in self._interpreter.get_output_details()]
        except Exception as error:
            raise failed("LiteRT", self._path, error) from error
        return [np.asarray(y) for y in found]

    def kernels(self) -> tuple[Kernel, ...]:
        """The ops of the file. LiteRT computes each in the type of its tensors: it has no silent fallback."""
        counts = Counter((kind, precision) for _, kind, precision in self._ops())
        return tuple(Kernel(name=kind, precision=p, count=n) for (kind, p), n in sorted(counts.items()))

    def float_islands(self) -> tuple[str, ...]:
        """See Session."""
        return tuple(name for name, kind, p in self._ops() if p.startswith("float") and kind not in MOVES)

    def _ops(self) -> list[tuple[str, str, str]]:
        """The result, the kind and the precision of each op."""
        graph, kinds = self._model.subgraphs[0], dtypes()
        names = unique_names(graph)
        found = []
        for op in graph.operators:
            kind = kind_of(self._model, op)
            result = graph.tensors[op.outputs[0]]
            first = graph.tensors[op.inputs[0]] if kind == "DEQUANTIZE" else result
            found.append((names[op.outputs[0]], kind, str(kinds.get(first.type, "unknown"))))
        return found

    def _check(self, want: dict[str, Any], x: np.ndarray) -> None:
        if x.dtype != want["dtype"]:
            raise EngineError(f"input {want['name']!r} has to be {np.dtype(want['dtype'])}, got {x.dtype}")
        sizes = [int(size) for size in want["shape_signature"]]
        if len(sizes) != x.ndim or any(s not in (-1, have) for s, have in zip(sizes, x.shape, strict=True)):
            shown = " × ".join("batch" if size < 0 else str(size) for size in sizes)
            raise EngineError(f"input {want['name']!r} has to have the shape {shown}, got {x.shape}")


@contextmanager
def _quiet() -> Iterator[None]:
    """LiteRT's own code greets on the error stream each time; what goes wrong it raises."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


def _expose(model: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Add inner tensors to the outputs of a `ModelT`; the names of all outputs. Raises EngineError."""
    graph = model.subgraphs[0]
    found = unique_names(graph)
    known = {name: i for i, name in enumerate(found)}
    first = [found[i] for i in graph.outputs]
    if unknown := [name for name in names if name not in known]:
        raise EngineError(f"there is no tensor {unknown[0]!r} to expose in the file")
    graph.outputs = [*(int(i) for i in graph.outputs), *(known[n] for n in names if n not in first)]
    return (*first, *(n for n in names if n not in first))

"""The frame of engines' own formats: files made of the graph of the ONNX exporter, with the same integers."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import onnx
from torch import Tensor, fx

from isobit.core.artifact import Artifact, artifact_of
from isobit.core.errors import UnsupportedError
from isobit.export.beside import check_places
from isobit.export.encodings import ReadBack
from isobit.export.onnx_qdq import OnnxQdq

Write = Callable[[Path, onnx.ModelProto, dict[str, str]], None]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFormat:
    """An exporter: `write` puts a Q/DQ graph and its metadata into a file, whole or not at all.

    `suffix` is the file's own, `beside` those of the files that belong to it. `check` raises MissingExtraError before
    any work where a package is not there; `read` finds the encodings in a file again.
    """

    format: str
    suffix: str
    write: Write
    beside: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None
    read: Callable[[Path], ReadBack] | None = None

    def export(
        self,
        model: fx.GraphModule,
        path: str | Path,
        *,
        example: tuple[Tensor, ...],
        metadata: dict[str, str] | None = None,
    ) -> Artifact:
        """Write a prepared model in this format, with a batch of any size.

        Raises UnsupportedError, with the op's name, for what the format has no form for, MissingExtraError without its
        package, OutputError where `path` cannot be written, SettingError for a name that another file of it has.
        """
        path = Path(path)
        check_places(path, self.beside, instead=self.suffix)
        self.check()
        with tempfile.TemporaryDirectory() as folder:
            plain = OnnxQdq(packed=False)
            graph = plain.export(model, Path(folder) / "model.onnx", example=example, metadata=metadata)
            source = onnx.load(graph.path)
        self.write(path, source, graph.metadata)
        beside = [path.with_suffix(suffix) for suffix in self.beside]
        return artifact_of(path, format=self.format, metadata=graph.metadata, beside=beside, notes=graph.notes)

    def read_back(self, path: str | Path) -> ReadBack:
        """The encodings and integers in a file; raises ArtifactError, UnsupportedError for formats without a reader."""
        if self.read is None:
            raise UnsupportedError(f"files of the format {self.format} are read by isobit.verify, not as encodings")
        return self.read(Path(path))

"""What an exporter is."""

from pathlib import Path
from typing import Protocol

from torch import Tensor, fx

from isobit.core.artifact import Artifact
from isobit.export.encodings import ReadBack


class Exporter(Protocol):
    """Frozen settings that write a prepared model as a file of one format."""

    @property
    def format(self) -> str:
        """Its key in `EXPORTERS`."""

    def export(
        self,
        model: fx.GraphModule,
        path: str | Path,
        *,
        example: tuple[Tensor, ...],
        metadata: dict[str, str] | None = None,
    ) -> Artifact:
        """Write the file; it holds the same integers as the model, and `metadata` beside isobit's own."""


class Reader(Exporter, Protocol):
    """An exporter that reads its own files: what a vendor's tool finds in them."""

    def read_back(self, path: str | Path) -> ReadBack:
        """The encodings in a file, and the integers that follow from its weights; raises ArtifactError."""

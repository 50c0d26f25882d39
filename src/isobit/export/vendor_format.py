"""The frame of vendors' formats: a network in ONNX, with a text beside it or none. A new one says what is its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import onnx_ir as ir
from torch import Tensor, fx

from isobit.core.artifact import Artifact, own_metadata
from isobit.export.beside import check_places, parsed, read_beside, write_beside
from isobit.export.encodings import ReadBack
from isobit.export.float_network import FloatNetwork, float_network

Text = tuple[str, Sequence[str]]
"""What stands beside a network, empty where nothing does; and notes on what the format leaves to its tool."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Files of a format as they are read: the network and the text beside it."""

    path: Path
    graph: ir.Graph
    text: str

    def json(self) -> Any:
        """The text as JSON; raises ArtifactError."""
        return parsed(self.path, self.text)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class VendorFormat:
    """An exporter and reader: `write` and `read` are the format's own, `what` is its name in error texts.

    `write` may put operators into the network; `opset` is what the vendor's tool reads, `suffix` that of the text. A
    format of `logarithms` takes no uniform grids, and others no logarithmic ones.
    """

    format: str
    what: str
    opset: int
    suffix: str = ""
    logarithms: bool = False
    write: Callable[[FloatNetwork], Text]
    read: Callable[[Held], ReadBack]

    def export(
        self,
        model: fx.GraphModule,
        path: str | Path,
        *,
        example: tuple[Tensor, ...],
        metadata: dict[str, str] | None = None,
    ) -> Artifact:
        """Write the network, and the text beside it; raises UnsupportedError, SettingError or OutputError."""
        path = Path(path)
        suffixes = [self.suffix] if self.suffix else []
        check_places(path, suffixes)
        network = float_network(model, example, what=self.what, logarithms=self.logarithms)
        text, notes = self.write(network)
        held = own_metadata(
            metadata, target=network.target, integers_sha256=network.integers_sha256, format=self.format
        )
        return write_beside(
            network.program, path, dict.fromkeys(suffixes, text), format=self.format, opset=self.opset, metadata=held,
            notes=(*network.notes, *notes),
        )  # fmt: skip

    def read_back(self, path: str | Path) -> ReadBack:
        """The encodings in the files, and the integers that follow; raises ArtifactError."""
        program, texts = read_beside(path, format=self.format)
        return self.read(Held(path=Path(path), graph=program.graph, text=texts.get(self.suffix, "")))

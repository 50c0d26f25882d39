"""Lightning's checkpoints without pickles."""

from pathlib import Path
from typing import Any, final

from lightning.pytorch.plugins.io import CheckpointIO

from isobit.core.checkpoint import load_checkpoint, save_checkpoint


@final
class SafetensorsIO(CheckpointIO):
    """Lightning's checkpoints as safetensors and JSON."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Whole or not at all."""
        del storage_options
        save_checkpoint(Path(path), checkpoint)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """On the CPU; Lightning moves what it restores."""
        del map_location, weights_only
        found: dict[str, Any] = load_checkpoint(Path(path))
        return found

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete one that is no longer the best."""
        Path(path).unlink(missing_ok=True)

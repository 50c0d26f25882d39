"""The curves of a training run for TensorBoard (`isobit[tensorboard]`)."""

from pathlib import Path
from typing import Any, final

import lightning.pytorch as pl
import torch

from isobit.core.qparams import QParams
from isobit.graph.slots import Slot

EVERY = 20
"""Steps between two values of the loss, each of which waits for the device."""


@final
class TensorBoard(pl.Callback):
    """Writes loss and learning rate every `EVERY` steps; accuracy and the scale of each quantizer every epoch.

    `start` is the step that the run goes on from: what an interrupted run wrote behind it is hidden.
    """

    def __init__(self, folder: Path, *, start: int = 0) -> None:
        self.folder, self.start = folder, start
        self._writer: Any = None

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Open the file, in the first process."""
        from torch.utils.tensorboard import SummaryWriter

        if trainer.is_global_zero:
            self._writer = SummaryWriter(self.folder, purge_step=self.start + 1)

    def on_train_batch_end(self, trainer: pl.Trainer, _: pl.LightningModule, outputs: Any, *__: Any) -> None:
        """What every step gives."""
        if self._writer is not None and trainer.global_step % EVERY == 0 and outputs is not None:
            self._writer.add_scalar("loss", float(outputs["loss"]), trainer.global_step)
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self._writer.add_scalar("learning_rate", rate, trainer.global_step)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        """What every epoch gives; of a scale per channel, the mean."""
        if self._writer is None:
            return
        for name, value in trainer.callback_metrics.items():
            self._writer.add_scalar(name, float(value), trainer.global_step)
        for slot in (m for m in task.modules() if isinstance(m, Slot)):
            if isinstance(grid := slot.grid(), QParams):
                self._writer.add_scalar(f"scale/{slot.point}", float(grid.scale.mean()), trainer.global_step)
        self._writer.flush()

    def on_train_end(self, *_: Any) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def on_exception(self, *_: Any) -> None:
        """Close the file."""
        self.on_train_end()

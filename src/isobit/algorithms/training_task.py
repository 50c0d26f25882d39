"""The training loop as Lightning wants it: a task, checkpoints without pickles, and what is watched."""

import copy
import math
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, final

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, fx, nn

from isobit.algorithms.batch_norm import batch_norms, freeze_batch_norm, recalibrate_batch_norm
from isobit.algorithms.calibration import finish
from isobit.algorithms.curvature import BATCHES, show_curvature
from isobit.algorithms.distillation import Distillation, output_error
from isobit.algorithms.optimization import optimization
from isobit.algorithms.own_loop import advance, penalty
from isobit.algorithms.safetensors_io import SafetensorsIO
from isobit.algorithms.tensorboard import TensorBoard
from isobit.algorithms.training import Epoch, Hardware, Training, TrainingData, TrainingRecord
from isobit.core.batches import Batch, Data, batches
from isobit.core.checkpoint import load_checkpoint
from isobit.core.distributed import mean_over_ranks
from isobit.core.errors import CalibrationError, SettingError
from isobit.core.files import write_text
from isobit.core.progress import Progress
from isobit.graph.insert import slots
from isobit.graph.slots import MARK

CHECK_EVERY = 20
"""Steps between two looks at the loss, each of which waits for the device."""

PATIENCE = 2
"""Epochs in a row whose mean loss is not below that of guessing, after which a run has diverged."""


def fit(
    model: nn.Module,
    data: TrainingData,
    evaluation: Data,
    settings: Training,
    *,
    folder: Path,
    teacher: nn.Module | None,
    hardware: Hardware,
    tensorboard: bool,
    progress: Progress,
) -> TrainingRecord:
    """Run Lightning's trainer; `isobit.algorithms.training.train` explains the arguments."""
    last = folder / "last.safetensors"
    step, resuming = 0, last.exists()
    if not resuming:
        _check_calibrated(model)
    else:
        checkpoint = load_checkpoint(last)
        found, step = checkpoint["isobit"], checkpoint["global_step"]
        _check_same(found["settings"], settings)
        if found["not_converged"]:  # it stays so when it is started again
            return TrainingRecord(
                settings=settings,
                epochs=tuple(Epoch(**e) for e in found["curve"]),
                seconds=found["seconds"],
                not_converged=found["not_converged"],
            )
    task = Task(model, data, evaluation, settings, folder=folder, teacher=teacher, progress=progress)
    callbacks = _callbacks(settings, folder)
    if tensorboard:
        callbacks.append(TensorBoard(folder / "tensorboard", start=step))
    model.train()  # Lightning leaves modules in the mode they have
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")  # about its own internals
        trainer = _trainer(task, hardware, callbacks)
        trainer.fit(task, ckpt_path=str(last) if resuming else None)
    for module in (model, teacher):
        if module is not None:
            module.eval()
    return TrainingRecord(
        settings=settings, epochs=tuple(task.curve), seconds=task.seconds_before, not_converged=task.not_converged
    )


def _trainer(task: "Task", hardware: Hardware, callbacks: list[pl.Callback]) -> pl.Trainer:
    settings = task.settings
    try:
        return pl.Trainer(
            max_epochs=settings.epochs,
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.nodes,
            strategy=_strategy(task, hardware),
            precision=settings.precision,  # type: ignore[arg-type]
            gradient_clip_val=settings.clip_norm,
            callbacks=callbacks,
            plugins=[SafetensorsIO()],
            logger=False,
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ImportError, ValueError) as error:
        where = f"{hardware.processes} {hardware.accelerator} device{'s' if hardware.processes > 1 else ''}"
        raise SettingError(f"Lightning cannot train on {where}: {error}") from error


def _strategy(task: "Task", hardware: Hardware) -> str:
    """Lightning's own choice, unless an algorithm freezes parameters on the way, or leaves weights behind unused."""
    if hardware.strategy != "auto" or hardware.processes == 1:
        return hardware.strategy
    held = [slot.quantizer for slot in slots(task.model)]
    partly = task.settings.freeze_bn_affine or any(
        callable(getattr(q, name, None)) for q in held for name in ("advance", "start")
    )
    return "ddp_find_unused_parameters_true" if partly else "ddp"


def _callbacks(settings: Training, folder: Path) -> list[pl.Callback]:
    # Two of them: with `save_last` alone, Lightning writes the last one only where it is the best so far as well.
    saving = [
        ModelCheckpoint(
            dirpath=folder, filename=name, monitor=monitor, mode="max", save_on_train_epoch_end=True,
            auto_insert_metric_name=False, enable_version_counter=False,
        )
        for name, monitor in (("best", "accuracy"), ("last", None))
    ]  # fmt: skip
    for callback in saving:
        callback.FILE_EXTENSION = ".safetensors"
    averaging = [EMAWeightAveraging(decay=settings.ema_decay)] if settings.ema_decay is not None else []
    return [*saving, *averaging]


@final
class Task(pl.LightningModule):
    """One training run. What a resumed run needs beside weights and optimizer is `curve` and the seconds spent."""

    def __init__(
        self,
        model: nn.Module,
        data: TrainingData,
        evaluation: Data,
        settings: Training,
        *,
        folder: Path,
        teacher: nn.Module | None,
        progress: Progress,
    ) -> None:
        super().__init__()
        self.model = model
        self._distillation = Distillation(model, teacher, settings) if teacher is not None else None
        compiled = settings.compile and teacher is None
        self._step_of = (torch.compile(model) if compiled else model,)  # in a tuple: it is the model once more
        self.data, self.evaluation, self.settings, self.progress = data, evaluation, settings, progress
        self.folder = folder
        self.curve: list[Epoch] = []
        self.not_converged = ""
        self.seconds_before = 0.0
        self._started = time.perf_counter()
        self._losses: list[Tensor] = []
        self._right = self._total = 0
        self._classes = 2
        self._judged = (model,)

    # -- data

    def train_dataloader(self) -> Iterable[Any]:
        """The batches of the current epoch and of this process."""
        return _Batches(self.data, self.current_epoch, self.trainer.global_rank, self.trainer.world_size)

    def val_dataloader(self) -> Iterable[Any]:
        """The evaluation data, all of it in every process."""
        return _Evaluation(self.evaluation)

    # -- steps

    def on_fit_start(self) -> None:
        """The teacher computes where the student does; what is to be frozen has to be there."""
        if self.settings.freeze_bn_at is not None and not batch_norms(self.model):
            raise SettingError(
                "freeze_bn_at is set, and the network has no batch norm to freeze (bn_fold = 0 merges it before the "
                "training): leave freeze_bn_at out, or choose another bn_fold"
            )
        if self._distillation is not None:
            self._distillation.teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Seed the draws of this epoch, and move schedules of the algorithms."""
        torch.manual_seed(self.settings.seed * 100_003 + self.current_epoch)
        advance(self.model, self.current_epoch / self.settings.epochs)
        self._losses = []
        every = self.settings.curvature_epochs
        if every and self.current_epoch and self.current_epoch % every == 0:
            data = batches(self.data.epoch(self.current_epoch), name="training data")
            show_curvature(self.model, islice(data, BATCHES), self._eager_loss, seed=self.current_epoch)

    def _eager_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy, or the output error without labels, in full precision."""
        inputs = tuple(x.to(self.device) for x in batch.inputs)
        logits = self.model(*inputs)
        if self._distillation is None or (self.settings.labels and batch.labels is not None):
            assert batch.labels is not None
            return F.cross_entropy(logits, batch.labels.to(self.device), label_smoothing=self.settings.label_smoothing)
        with torch.no_grad():
            wanted = self._distillation.teacher(*inputs)
        return output_error(logits, wanted)

    def on_train_batch_start(self, *_: Any) -> None:
        """Freeze batch norms, a function of the step alone; an evaluation in between leaves modes as they are."""
        s = self.settings
        if s.freeze_bn_at is not None and self.global_step >= s.freeze_bn_at * s.epochs * self.data.steps:
            freeze_batch_norm(self.model, affine=s.freeze_bn_affine)

    def training_step(self, batch: Any, index: int) -> Tensor | None:
        """The loss of one batch: cross-entropy, the teacher's part, the quantizers' penalties."""
        (one,) = batches([batch], name="training data")
        loss = self._loss(one)
        loss = loss + penalty(self.model).to(loss.device)
        if index % CHECK_EVERY == 0:
            self.progress("training", self.global_step, self.settings.epochs * self.data.steps)
            seen = float(mean_over_ranks(loss.detach())[0])  # all processes stop, or none
            if not math.isfinite(seen):
                self._stop(f"the loss became {seen} in epoch {self.current_epoch + 1}, step {index + 1}")
        return loss

    def _loss(self, batch: Batch) -> Tensor:
        """Without penalties. The epoch's mean is that of the cross-entropy, where there are labels."""
        distillation, s, supervised = self._distillation, self.settings, None
        features: list[Tensor] = []
        if distillation is None:
            logits = self._step_of[0](*batch.inputs)
        else:
            logits, features = distillation.student(*batch.inputs)
        self._classes = logits.shape[1]
        if s.labels:
            if batch.labels is None:
                raise CalibrationError(
                    "the training data has no labels: give batches (x, labels), or a teacher, and set labels to false"
                )
            supervised = F.cross_entropy(logits, batch.labels, label_smoothing=s.label_smoothing)
        if distillation is None:
            assert supervised is not None
            loss = supervised
        else:
            loss = distillation.loss(batch.inputs, logits, features, supervised)
        self._losses.append((loss if supervised is None else supervised).detach())
        return loss

    def on_validation_epoch_start(self) -> None:
        """Count from 0; statistics of the weights that are deployed, where training saw others or at the end."""
        self._right = self._total = 0
        held = [slot.quantizer for slot in slots(self.model)]
        anew = self.settings.bn_reestimate and self.current_epoch == self.settings.epochs - 1
        if self.settings.bn_recalibration and (anew or any(getattr(q, "differs_in_eval", False) for q in held)):
            processes = {"rank": self.trainer.global_rank, "ranks": self.trainer.world_size}
            data = self.data.epoch(self.current_epoch, **processes)
            recalibrate_batch_norm(self.model, data, batches=self.settings.bn_recalibration)
        self._judged = (as_deployed(self.model),)

    def validation_step(self, batch: Any, _: int) -> None:
        """Count the images right of the network as it is deployed, in full precision whatever the training has."""
        (one,) = batches([batch], name="evaluation data")
        if one.labels is None:
            raise CalibrationError("the evaluation data has no labels: give batches (x, labels)")
        with torch.autocast(self.device.type, enabled=False):
            logits = self._judged[0](*one.inputs)
        self._right += int((logits.argmax(1) == one.labels).sum())
        self._total += one.size

    def on_validation_epoch_end(self) -> None:
        """What decides which checkpoint is the best."""
        self._judged = (self.model,)
        self.log("accuracy", 100.0 * self._right / max(self._total, 1))

    def on_train_epoch_end(self) -> None:
        """Note the epoch; a loss that is not below guessing is no training."""
        loss = float(mean_over_ranks(torch.stack(self._losses).mean())[0]) if self._losses else math.nan
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        number = self.current_epoch + 1
        if math.isfinite(loss):
            epoch = Epoch(number=number, loss=loss, right=self._right, total=self._total, learning_rate=rate)
            self.curve.append(epoch)
        if self.trainer.is_global_zero:
            write_metrics(self.folder / "metrics.csv", self.curve)
        guessing = math.log(self._classes)
        lost = [e for e in self.curve[-PATIENCE:] if e.loss >= guessing and e.number > self.settings.warmup_epochs]
        if not math.isfinite(loss):
            self._stop(f"the mean loss of epoch {number} is {loss}")
        elif len(lost) == PATIENCE and self.settings.labels:
            self._stop(f"the mean loss of epoch {number}, {loss:.3f}, is not below that of guessing, {guessing:.3f}")

    def _stop(self, reason: str) -> None:
        self.not_converged = self.not_converged or reason
        self.trainer.should_stop = True

    # -- optimization

    def configure_optimizers(self) -> Any:
        """Weights and quantizer parameters in groups of their own."""
        optimizer, schedule = optimization(self.model, self.settings, steps_per_epoch=self.data.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the record of the run needs."""
        checkpoint["isobit"] = {
            "settings": asdict(self.settings),
            "curve": [asdict(e) for e in self.curve],
            "seconds": self.seconds_before + time.perf_counter() - self._started,
            "not_converged": self.not_converged,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another run; quantizers that were calibrated then are so now."""
        found = checkpoint["isobit"]
        _check_same(found["settings"], self.settings)
        self.curve = [Epoch(**e) for e in found["curve"]]
        self.seconds_before = found["seconds"]
        for slot in slots(self.model):
            slot.mode = "quantize"


@final
class _Batches:
    """The batches of one epoch, which Lightning walks once."""

    def __init__(self, data: TrainingData, epoch: int, rank: int, ranks: int) -> None:
        self.data, self.number, self.rank, self.ranks = data, epoch, rank, ranks

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data.epoch(self.number, rank=self.rank, ranks=self.ranks))

    def __len__(self) -> int:
        return self.data.steps


@final
class _Evaluation:
    """Any iterable as one data loader: Lightning takes a list for several."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return iter(self.data)


def as_deployed(model: nn.Module) -> nn.Module:
    """What `finish` would make of a quantized network now, as a copy; any other one, and one that diverged, itself."""
    finite = all(bool(p.isfinite().all()) for p in model.parameters())
    if not (isinstance(model, fx.GraphModule) and "preparation" in model.meta and finite):
        return model
    copied = copy.deepcopy(model).eval()
    finish(copied)
    return copied


def write_metrics(path: Path, curve: list[Epoch]) -> None:
    """All epochs so far as comma-separated values; the file is whole at any moment, after a resumed run too."""
    lines = ["epoch,loss,accuracy,right,total,learning_rate"]
    lines += [f"{e.number},{e.loss!r},{e.accuracy!r},{e.right},{e.total},{e.learning_rate!r}" for e in curve]
    write_text(path, "\n".join(lines) + "\n")


def _check_same(found: dict[str, Any], settings: Training) -> None:
    """Raise SettingError where a checkpoint is that of other settings."""
    own, found = asdict(settings), asdict(Training()) | found  # a setting that came later had its default
    if other := [k for k, v in own.items() if found[k] != v]:
        raise SettingError(
            f"the folder holds a run with {other[0]} = {found[other[0]]!r}, this one has {own[other[0]]!r}: "
            "choose another folder, or delete last.safetensors to start again"
        )


def _check_calibrated(model: nn.Module) -> None:
    held = slots(model)
    waiting = [s.point for s in held if s.mode != "quantize"]
    if not held:  # a float network, unless `isobit.quant_modules` marked its layers
        waiting = [name for name, module in model.named_modules() if MARK in module.__dict__]
    if waiting:
        raise CalibrationError(f"{waiting[0]} has no range yet: calibrate the model before it is trained")

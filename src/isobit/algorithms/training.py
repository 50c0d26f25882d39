"""Training with quantizers: one loop for every algorithm, float networks included, on Lightning (`isobit[train]`).

A user's own loop needs nothing of this: a prepared and calibrated model is an nn.Module like any other.
"""

import logging
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from isobit.core.batches import Data
from isobit.core.errors import MissingExtraError, SettingError
from isobit.core.progress import Progress, silent


class TrainingData(Protocol):
    """Training batches `(x, labels)` that are a function of the epoch, so that a resumed run sees the same ones.

    For distillation without labels, `(x,)` will do.
    """

    steps: int
    """Batches of one epoch in one process."""

    def epoch(self, number: int, *, rank: int = 0, ranks: int = 1) -> Iterable[Any]:
        """The batches of epoch `number` (from 0) for one of several processes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The training recipe. Rates are per step, `warmup_epochs` may be a fraction. A warm-up
    starts at `first_learning_rate`; the schedules `cosine` and `poly`, (1 - t)², end at `last_learning_rate`.

    Quantizer parameters have `quantizer_learning_rate` times the learning rate and `quantizer_weight_decay`, unless
    their algorithm says otherwise. γ and β of batch norms have `norm_weight_decay`, where it is set.

    A teacher adds to the loss: `distillation` is the weight of its soft targets, at `temperature`, and one less that of
    the labels; `feature_distillation` is the weight of the error of the feature maps at `feature_layers`, named as in
    the float network (see `isobit.algorithms.distillation`). Without `labels` the training data needs none, and the
    mean squared error of the outputs to the teacher's takes their place.

    Quantizers that scale their gradients by the curvature of the loss, as EWGS does, are shown it after every
    `curvature_epochs` epochs (0: never), at the price of some fifteen steps for each quantizer.

    `precision` is Lightning's; quantizers and evaluation compute in float32 under any. With `compile`
    the network's training step is compiled. What is evaluated is the network as it would be deployed.

    From the part `freeze_bn_at` of the training on (0.8: the last fifth), the statistics of batch norms stay as they
    are, folded or not, and with `freeze_bn_affine` so do their γ and β. With `bn_reestimate` the statistics are taken
    anew from `bn_recalibration` training batches before the last evaluation; where training computes with other weights
    than are deployed, as SLB does (a quantizer's `differs_in_eval`), they are before each.
    """

    epochs: int = 10
    optimizer: str = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    first_learning_rate: float = 0.0
    last_learning_rate: float = 0.0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    ema_decay: float | None = None
    quantizer_learning_rate: float = 1.0
    quantizer_weight_decay: float = 0.0
    norm_weight_decay: float | None = None
    distillation: float = 0.0
    temperature: float = 4.0
    feature_distillation: float = 0.0
    feature_layers: tuple[str, ...] = ()
    labels: bool = True
    curvature_epochs: int = 10
    bn_recalibration: int = 50
    bn_reestimate: bool = False
    freeze_bn_at: float | None = None
    freeze_bn_affine: bool = False
    precision: str = "32-true"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, ("sgd", "adamw"))
        _one_of("schedule", self.schedule, ("cosine", "poly", "constant"))
        positive = {"learning_rate": self.learning_rate, "temperature": self.temperature}
        for name, value in positive.items():
            if not value > 0:
                raise SettingError(f"{name} has to be above 0, got {value}")
        if self.epochs < 1:
            raise SettingError(f"epochs has to be at least 1, got {self.epochs}")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise SettingError(f"warmup_epochs has to be from 0 to below epochs, got {self.warmup_epochs}")
        for name, rate in (("first", self.first_learning_rate), ("last", self.last_learning_rate)):
            if not 0 <= rate <= self.learning_rate:
                raise SettingError(f"{name}_learning_rate has to be from 0 to learning_rate, got {rate}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise SettingError(f"ema_decay has to lie between 0 and 1, got {self.ema_decay}")
        if self.curvature_epochs < 0:
            raise SettingError(f"curvature_epochs has to be at least 0, which is never, got {self.curvature_epochs}")
        _check_distillation(self)
        _check_batch_norm(self)

    @property
    def distills(self) -> bool:
        """Whether there has to be a teacher."""
        return self.distillation > 0 or self.feature_distillation > 0 or not self.labels


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """What one epoch came to: mean training loss, and the test images right."""

    number: int
    loss: float
    right: int
    total: int
    learning_rate: float

    @property
    def accuracy(self) -> float:
        """In per cent."""
        return 100.0 * self.right / self.total


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRecord:
    """The result of a run. `not_converged` says why a run was stopped, and is empty for one that converged."""

    settings: Training
    epochs: tuple[Epoch, ...]
    seconds: float
    not_converged: str = ""

    @property
    def last(self) -> Epoch | None:
        """The last epoch; None where none was finished."""
        return self.epochs[-1] if self.epochs else None

    @property
    def best(self) -> Epoch | None:
        """The first of the epochs with the most images right."""
        return max(self.epochs, key=lambda e: e.right, default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """Where to train, in Lightning's words. A result may differ by rounding; a checkpoint fits any hardware.

    Each of several processes gets its part of every batch. Layers that train folded share the statistics of all parts
    (with `bn_synchronized`); plain batch norms count their own, and the first process's are kept.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"

    def __post_init__(self) -> None:
        for name, value in (("devices", self.devices), ("nodes", self.nodes)):
            if value < 1:
                raise SettingError(f"{name} has to be at least 1, got {value}")

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.devices * self.nodes


def train(
    model: nn.Module,
    data: TrainingData,
    evaluation: Data,
    settings: Training,
    *,
    folder: str | Path,
    teacher: nn.Module | None = None,
    hardware: Hardware | None = None,
    tensorboard: bool = False,
    progress: Progress = silent,
) -> TrainingRecord:
    """Train `model` in place and return the record of the run.

    `folder` receives `last.safetensors` after every epoch, `best.safetensors`, `metrics.csv` and, where it is wanted,
    `tensorboard` with the curves of loss, accuracy, learning rate and quantizer scales. On several devices every
    process returns the same record, and the first one writes. Where it holds the
    checkpoint of an interrupted run of the same settings, that run goes on, with the same final weights. A loss that
    is not finite, or not below guessing after a whole epoch, ends the run as not converged.

    Raises MissingExtraError without Lightning or TensorBoard, SettingError for hardware that is not there, distillation
    without a teacher and a checkpoint of other settings, UnknownNameError for a feature layer that does not exist,
    CalibrationError for quantizers without ranges and data without labels.
    """
    if settings.distills and teacher is None:
        raise SettingError(
            "distillation needs a teacher: give one, or set distillation and feature_distillation to 0, labels to true"
        )
    if teacher is not None and not settings.distills:
        raise SettingError(
            "nothing is learned from the teacher: set distillation or feature_distillation, or give none"
        )
    require(tensorboard=tensorboard)
    from isobit.algorithms.training_task import fit

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    record = fit(
        model, data, evaluation, settings, folder=folder, teacher=teacher, hardware=hardware or Hardware(),
        tensorboard=tensorboard, progress=progress,
    )  # fmt: skip
    return replace(record, seconds=record.seconds + time.perf_counter() - start)


def require(*, tensorboard: bool = False) -> None:
    """Raise MissingExtraError where Lightning, or TensorBoard if it is wanted, is not installed."""
    if tensorboard and not find_spec("tensorboard"):
        raise MissingExtraError("TensorBoard", "tensorboard")
    try:
        import lightning.pytorch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Lightning, which training runs on,", "train") from error


def is_first_process() -> bool:
    """Whether this process writes the results: the only one, or the first of those that train together."""
    from lightning.pytorch.utilities import rank_zero_only

    return int(getattr(rank_zero_only, "rank", 0)) == 0


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingError(f"{name} has to be {' or '.join(known)}, got {value!r}")


def _check_distillation(s: Training) -> None:
    if not 0 <= s.distillation <= 1:
        raise SettingError(f"distillation is a weight from 0 to 1, got {s.distillation}")
    if not (s.feature_distillation >= 0 and math.isfinite(s.feature_distillation)):
        raise SettingError(f"feature_distillation is a weight of at least 0, got {s.feature_distillation}")
    if s.feature_layers and not s.feature_distillation:
        raise SettingError("feature_layers are named, and feature_distillation is 0: give it a weight, such as 1.0")
    if not s.labels and s.label_smoothing:
        raise SettingError("label_smoothing is set, and labels is false: set one of them otherwise")


def _check_batch_norm(s: Training) -> None:
    if s.bn_recalibration < 0:
        raise SettingError(f"bn_recalibration is a number of batches, at least 0, got {s.bn_recalibration}")
    if s.bn_reestimate and not s.bn_recalibration:
        raise SettingError("bn_reestimate is set, and bn_recalibration is 0 batches: give it some, such as 50")
    if s.freeze_bn_at is not None and not 0 <= s.freeze_bn_at < 1:
        raise SettingError(f"freeze_bn_at is a part of the training, from 0 to below 1, got {s.freeze_bn_at}")
    if s.freeze_bn_affine and s.freeze_bn_at is None:
        raise SettingError("freeze_bn_affine is set, and freeze_bn_at is not: say from when on, such as 0.8")

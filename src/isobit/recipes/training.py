"""A training recipe: network, data, quantization and schedule in one file, and the run that it describes."""

from dataclasses import dataclass, field

from isobit.algorithms.training import Training
from isobit.core.errors import SettingError
from isobit.recipes.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """What is done to the training images: `crop` pixels of black around them and a random window, a mirror."""

    crop: int = 0
    mirror: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRecipe:
    """What `isobit train` does. Without `quantization` the float network is trained.

    `network` and `teacher` are built-in names or `file.py:callable`; `data` and `evaluation` as on the command line;
    `calibration_batches` batches of the training data, as they are, set the first ranges.
    """

    network: str
    data: str
    evaluation: str
    format: int = 1
    weights: str | None = None
    teacher: str | None = None
    teacher_weights: str | None = None
    quantization: Recipe | None = None
    training: Training = Training()
    augmentation: Augmentation = Augmentation()
    batch_size: int = 128
    calibration_batches: int = 8
    normalize: str | None = None
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.format != 1:
            raise SettingError(f"this isobit reads training recipes of format 1, this one has format {self.format}")
        if self.calibration_batches < 1:
            raise SettingError(f"calibration_batches has to be at least 1, got {self.calibration_batches}")
        if self.training.distillation and self.teacher is None:
            raise SettingError("training.distillation is set, and no teacher: name one, or set it to 0")

"""A training recipe: network, data, quantization and schedule in one file, and the run that it describes."""

from dataclasses import dataclass, field, replace

from isobit.algorithms.training import Hardware, Training
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

    `network` and `teacher` are built-in names or `file.py:callable`; `data` and `evaluation` as on the command line.
    Where distillation names no teacher, the float network itself, with its `weights`, is the teacher.
    `hardware` says where it is trained, `tensorboard` whether its curves are written for TensorBoard.
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
    hardware: Hardware = Hardware()
    tensorboard: bool = False
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.format != 1:
            raise SettingError(f"this isobit reads training recipes of format 1, this one has format {self.format}")
        if self.calibration_batches < 1:
            raise SettingError(f"calibration_batches has to be at least 1, got {self.calibration_batches}")
        if self.batch_size % self.hardware.processes:
            raise SettingError(
                f"batch_size = {self.batch_size} cannot be shared evenly by {self.hardware.processes} processes "
                "(hardware.devices times hardware.nodes): choose a multiple"
            )
        if self.teacher is None and self.teacher_weights is not None:
            raise SettingError("teacher_weights are given, and no teacher: name the network that they belong to")
        if self.teacher is not None and not self.training.distills:
            raise SettingError("a teacher is named, and nothing is learned from it: set training.distillation")
        trained = self.weights is not None or ":" not in self.network
        if self.training.distills and self.teacher is None and not trained:
            raise SettingError(
                "distillation needs a teacher: name one, or give the weights of the network, which then is the teacher"
            )

    def same_result(self, other: "TrainingRecipe") -> bool:
        """Whether both describe the same run: TensorBoard and notes make no other one of it, nor does hardware.

        Without `bn_synchronized`, though, the number of processes does.
        """
        apart = [r.quantization is not None and not r.quantization.bn_synchronized for r in (self, other)]
        if any(apart) and self.hardware.processes != other.hardware.processes:
            return False
        one, two = (replace(r, hardware=Hardware(), tensorboard=False, notes=()) for r in (self, other))
        return one == two

"""ncnn on the CPU: int8 convolutions and inner products, floats between them."""

from collections.abc import Sequence
from pathlib import Path

from isobit.core.arithmetic import NCNN as RULES
from isobit.core.errors import ArtifactError, EngineError
from isobit.core.ncnn_file import read_ncnn
from isobit.engines.apart import WORKERS, Apart
from isobit.engines.environment import Environment

NCNN = Environment(
    name="ncnn",
    package="ncnn",
    requirements=("ncnn==1.0.20261020", "numpy>=1.26"),
    megabytes=150,
)


def ncnn() -> Apart:
    """ncnn. It takes net.param with net.bin beside it, one sample at a time."""
    return Apart(
        name="ncnn",
        title="ncnn",
        format="ncnn-int8",
        arithmetic=RULES,
        environment=NCNN,
        worker=WORKERS / "ncnn_net.py",
        check=check_file,
    )


def check_file(path: Path, expose: Sequence[str]) -> None:
    """Refuse what ncnn would crash on, and to show integers: ncnn keeps them to itself. Raises EngineError."""
    if expose:
        raise EngineError(f"there is no tensor {expose[0]!r} to expose: between its layers ncnn has floats alone")
    try:
        read_ncnn(path)
    except ArtifactError as error:
        raise EngineError(str(error)) from error

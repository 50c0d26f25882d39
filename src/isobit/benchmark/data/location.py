"""Where the shared data lies: `ISOBIT_DATA`, or the nearest `shared/data` above the current folder."""

import os
from pathlib import Path

from isobit.core.errors import CalibrationError

VARIABLE = "ISOBIT_DATA"


def data_folder() -> Path | None:
    """The folder with `cifar10`, `imagenet_sample` and `weights`, or None where there is none.

    Raises CalibrationError where `ISOBIT_DATA` names something that is not a folder.
    """
    if named := os.environ.get(VARIABLE):
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise CalibrationError(f"{VARIABLE} is {named!r}, which is not a folder. Set it to the data folder")
        return folder
    here = Path.cwd()
    candidates = (above / "shared" / "data" for above in (here, *here.parents))
    return next((folder for folder in candidates if folder.is_dir()), None)


def data_file(name: str) -> Path:
    """The path of a file in the data folder, such as `weights/cifar10_resnet20.safetensors`.

    Raises CalibrationError that says to set `ISOBIT_DATA`.
    """
    folder = data_folder()
    if folder is None:
        raise CalibrationError(
            f"{name} is needed, and there is no data folder: no shared/data above {Path.cwd()}. "
            f"Set {VARIABLE} to the folder that holds it"
        )
    path = folder / name
    if not path.exists():
        raise CalibrationError(f"there is no {name} in the data folder {folder}. Put it there, or set {VARIABLE}")
    return path

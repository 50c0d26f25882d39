"""A package of one line, and an environment that holds it: installed from a file, without a network."""

import zipfile
from pathlib import Path

from isobit.engines.environment import Environment


def tiny_wheel(folder: Path, *, needs: str = "") -> Path:
    """A package of one line."""
    path, info = folder / "isobit_tiny-1.5-py3-none-any.whl", "isobit_tiny-1.5.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("isobit_tiny.py", "ANSWER = 42\n")
        requires = f"Requires-Dist: {needs}\n" if needs else ""
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: isobit-tiny\nVersion: 1.5\n{requires}")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def tiny(wheel: Path) -> Environment:
    return Environment(name="tiny", package="isobit-tiny", requirements=(str(wheel),), megabytes=1)

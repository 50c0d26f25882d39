"""PT2 archives changed by hand, with Python's zipfile, for tests."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
SAMPLES = "data/sample_inputs/model.pt"


def records(source: Path | bytes) -> dict[str, bytes]:
    """The records of an archive by their names without the folder."""
    with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def archive_of(found: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these records."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in found.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def changed(source: Path | bytes, change: Callable[[dict[str, Any]], object], *, record: str = MODEL) -> bytes:
    """The archive with one of its JSON records changed."""
    found = records(source)
    content = json.loads(found[record])
    change(content)
    return archive_of({**found, record: json.dumps(content).encode()})

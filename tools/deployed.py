"""A quantized model as a file on ONNX Runtime: images right there, and the verdict over some of them."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, fx

import isobit
from isobit.engines import ENGINES


class Deployed(NamedTuple):
    """Images right of all that were given; the certificate's verdict over the first ones."""

    right: int
    verdict: str


def right_in_engine(path: Path, engine: str, data: Iterable[tuple[Tensor, ...]]) -> int:
    """How many images a file gets right on an engine."""
    session = ENGINES[engine]().load(path)
    return sum(int((session.run([x.numpy()])[0].argmax(1) == y.numpy()).sum()) for x, y in data)


def deployed(model: fx.GraphModule, test: Sequence[Any], *, samples: int = 50) -> Deployed:
    """Export, run every image on the engine, and verify about `samples` images (the integer reference is slow)."""
    with tempfile.TemporaryDirectory() as folder:
        path = isobit.export(model, Path(folder) / "net.onnx").path
        right = right_in_engine(path, "onnxruntime", test)
        few = max(1, samples // len(test[0][0]))
        verdict = isobit.verify(path, model, test[:few], engine="onnxruntime").verdict
    return Deployed(right, verdict)

"""Runs one engine for isobit: `python serve.py WORKER` answers the requests of `isobit.engines.process`.

A message is a line of JSON, then the bytes of its arrays one after the other; `arrays` lists their dtypes and shapes.
WORKER is a script with `load(path, expose, settings)`, which returns an object with

    outputs   the names of what `run` returns
    inputs    name, dtype and sizes of each input, -1 for any size; None where isobit reads them from the file
    kernels   name, precision and count of each kernel
    islands   the names of the ops that compute and run in float
    run       from a list of arrays to a list of arrays
"""

import contextlib
import importlib.util
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np

Message = tuple[dict[str, Any], list[np.ndarray]]


def send(stream: BinaryIO, header: dict[str, Any], arrays: list[np.ndarray]) -> None:
    """Write one message."""
    whole = [np.ascontiguousarray(x).reshape(np.shape(x)) for x in arrays]
    line = json.dumps({**header, "arrays": [[x.dtype.str, list(x.shape)] for x in whole]})
    stream.write(line.encode() + b"\n")
    for x in whole:
        stream.write(x.tobytes())
    stream.flush()


def receive(stream: BinaryIO) -> Message | None:
    """Read one message; None at the end of the stream."""
    line = stream.readline()
    if not line:
        return None
    header = json.loads(line)
    arrays = []
    for dtype, shape in header.pop("arrays"):
        empty = np.empty(shape, np.dtype(dtype))
        arrays.append(np.frombuffer(stream.read(empty.nbytes), empty.dtype).reshape(shape))
    return header, arrays


def serve(worker: ModuleType, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the requests end. What the engine raises is an answer; the next request may do better."""
    load: Callable[..., Any] = worker.load
    loaded: Any = None
    while (message := receive(requests)) is not None:
        header, inputs = message
        try:
            if header["do"] == "load":
                loaded = load(header["path"], header["expose"], header["settings"])
                send(answers, described(loaded), [])
                continue
            cpu, wall = time.process_time(), time.perf_counter()
            outputs = loaded.run(inputs)
            seconds = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            send(answers, seconds, [np.asarray(y) for y in outputs])
        except Exception as error:
            traceback.print_exc()
            send(answers, {"error": str(error).strip() or type(error).__name__}, [])


def described(loaded: Any) -> dict[str, Any]:
    """What a loaded file says of itself."""
    return {name: getattr(loaded, name) for name in ("outputs", "inputs", "kernels", "islands")}


def main() -> None:
    """Keep the real stdin and stdout for the messages: what libraries print goes to stderr."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    here = str(Path(__file__).parent)
    sys.path[:] = [p for p in sys.path if p != here]  # `import tvm` has to find TVM, and no script beside this one
    spec = importlib.util.spec_from_file_location("worker", sys.argv[1])
    assert spec is not None and spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    serve(worker, requests, answers)


if __name__ == "__main__":
    main()

"""A worker that doubles its input, and misbehaves as its settings say. It needs numpy alone."""

import os
import stat
import sys
import time
from pathlib import Path

import numpy as np


class Doubler:
    def __init__(self, settings: dict[str, object], expose: list[str]) -> None:
        self.settings = settings
        self.outputs = ["y", *expose]
        self.inputs = None if settings.get("onnx") else [["x", "float32", [-1, 3]]]
        self.kernels = [["doubling", "float32", 1]]
        self.islands = ["double"]

    def run(self, arrays: list[np.ndarray]) -> list[np.ndarray]:
        match self.settings.get("mischief"):
            case "die":
                sys.stderr.write("out of luck\n\n")
                os._exit(3)
            case "abort":
                os.abort()
            case "hang":
                sys.stderr.write("still thinking\n")
                time.sleep(60)
            case "garbage":
                channel = next(fd for fd in range(3, 20) if is_pipe_to_write(fd))
                os.write(channel, b"Welcome to the engine!\n")
                time.sleep(60)
            case "lie about sizes":
                channel = next(fd for fd in range(3, 20) if is_pipe_to_write(fd))
                os.write(channel, b'{"arrays": [["<f4", [4, 1000000000000]]]}\n')
                time.sleep(60)
            case "raise":
                raise ValueError("no kernel for this\nand more lines")
            case "one array too many":
                return [arrays[0], arrays[0]]
            case "sleep":
                time.sleep(0.02)
        sys.stdout.write("libraries print\n")
        os.write(1, b"C libraries too\n")
        return [arrays[0] * 2 for _ in self.outputs]


def is_pipe_to_write(fd: int) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(fd).st_mode) and os.write(fd, b"") == 0
    except OSError:
        return False


def load(path: str, expose: list[str], settings: dict[str, object]) -> Doubler:
    if settings.get("mischief") == "refuse":
        raise ValueError(f"{Path(path).read_text()!r} is no doubling")
    return Doubler(settings, expose)

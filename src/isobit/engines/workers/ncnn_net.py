"""Worker: ncnn on the CPU, in float32 where it is not int8."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

_COMPUTES = frozenset(
    {
        "BinaryOp", "Clip", "Concat", "Convolution", "ConvolutionDepthWise", "InnerProduct", "Pooling", "ReLU",
        "Sigmoid", "Softmax",
    }
)  # fmt: skip
"""Layers that compute; of products those alone that have no scales for integers are float islands."""


class File:
    """net.param and net.bin; one sample at a time, since ncnn knows no batch."""

    def __init__(self, path: str, threads: int) -> None:
        import ncnn

        self.ncnn = ncnn
        self.net = ncnn.Net()
        option = self.net.opt
        option.num_threads = threads
        option.use_vulkan_compute = False
        for name in (
            "use_fp16_packed",
            "use_fp16_storage",
            "use_fp16_arithmetic",
            "use_bf16_storage",
            "use_bf16_packed",
        ):
            if hasattr(option, name):
                setattr(option, name, False)
        weights = str(Path(path).with_suffix(".bin"))
        if self.net.load_param(path) != 0 or self.net.load_model(weights) != 0:
            raise ValueError("ncnn cannot read net.param and net.bin")
        self.outputs = [str(name) for name in self.net.output_names()]
        self.inputs, self.kernels, self.islands = _described(Path(path).read_text(encoding="utf-8"))

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Sample by sample."""
        samples = [self._run([x[i] for x in inputs]) for i in range(len(inputs[0]))]
        return [np.stack(each) for each in zip(*samples, strict=True)]

    def _run(self, sample: list[np.ndarray]) -> list[np.ndarray]:
        extractor = self.net.create_extractor()
        kept = [self.ncnn.Mat(np.ascontiguousarray(x)).clone() for x in sample]
        for (name, _, _), x in zip(self.inputs, kept, strict=True):
            extractor.input(name, x)
        found = []
        for name in self.outputs:
            code, y = extractor.extract(name)
            if code != 0:
                raise ValueError(f"ncnn cannot compute {name}: {code}")
            found.append(np.array(y))
        return found


def _described(text: str) -> tuple[list[tuple[str, str, list[int]]], list[tuple[str, str, int]], list[str]]:
    """The inputs, the kernels and the float islands, as net.param says: ncnn has no silent fallback."""
    inputs, islands = [], []
    kernels: Counter[tuple[str, str]] = Counter()
    for line in text.splitlines()[2:]:
        kind, name, n, m, *rest = line.split()
        parameters = dict(p.split("=") for p in rest[int(n) + int(m) :])
        if kind == "Input":
            sizes = [int(parameters[k]) for k in ("2", "1", "0") if k in parameters]
            inputs.append((rest[0], "float32", [-1, *sizes]))
            continue
        integer = parameters.get("8", "0") != "0" and kind in ("Convolution", "ConvolutionDepthWise", "InnerProduct")
        if kind in _COMPUTES:
            kernels[kind, "int8" if integer else "float32"] += 1
            islands += [] if integer else [name]
    return inputs, [(kind, precision, n) for (kind, precision), n in sorted(kernels.items())], islands


def load(path: str, expose: list[str], settings: dict[str, Any]) -> File:
    """Its blobs between the layers are floats: there are no integers to show."""
    if expose:
        raise ValueError("ncnn shows none of its integers")
    return File(path, int(settings["threads"]))

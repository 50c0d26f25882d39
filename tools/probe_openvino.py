"""Convolutions that one OpenVINO kernel gets wrong: verify a small network for several shapes.

    python tools/probe_openvino.py
    ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI python tools/probe_openvino.py

Prints kernel size, stride, channels, the verdict and the first op that differs.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import isobit

SHAPES = ((4, 4, 48, 192), (2, 2, 64, 64), (4, 4, 3, 96), (16, 16, 3, 192), (3, 1, 64, 64))


def probe(kernel: int, stride: int, channels_in: int, channels_out: int, folder: Path) -> str:
    """The verdict on one convolution with random weights and input."""
    torch.manual_seed(0)
    first = nn.Conv2d(channels_in, channels_out, kernel, stride)
    net = nn.Sequential(first, nn.ReLU(), nn.Conv2d(channels_out, 8, 1)).eval()
    x = torch.randn(2, channels_in, 64, 64)
    model = isobit.quantize(net, [x], target="openvino-cpu")
    isobit.export(model, folder / "probe.onnx")
    certificate = isobit.verify(folder / "probe.onnx", model, [x], engine="openvino")
    both = certificate.comparisons[0]
    return f"{certificate.verdict:8} {both.equal} of {both.total} outputs equal  {certificate.cause}"


def main() -> None:
    """Print one line per shape."""
    with tempfile.TemporaryDirectory() as folder:
        for shape in SHAPES:
            print("kernel {}, stride {}, {} -> {} channels:".format(*shape), probe(*shape, Path(folder)), flush=True)


if __name__ == "__main__":
    main()

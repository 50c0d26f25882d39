"""Networks of the zoo as ONNX files, by both exporters of PyTorch."""

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim


def export(
    net: nn.Module,
    example: Sequence[Tensor],
    path: Path,
    *,
    exporter: str,
    fixed: bool = False,
    opset: int | None = None,
) -> Path:
    """Write a network; `fixed` writes it for one sample, the exporter "unfolded" leaves batch norm as it is."""
    given = tuple(x[:1] if fixed else x.clone() for x in example)
    names = [f"in{i}" for i in range(len(given))]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        if exporter == "torchscript":
            axes = None if fixed else {name: {0: "batch"} for name in names}
            torch.onnx.export(
                net, given, path, dynamo=False, input_names=names, opset_version=opset or 17, dynamic_axes=axes
            )
        else:
            shapes = None if fixed else tuple({0: Dim.DYNAMIC} for _ in given)
            torch.onnx.export(
                net, given, path, dynamo=True, verbose=False, external_data=False, opset_version=opset,
                dynamic_shapes=shapes, optimize=exporter != "unfolded",
            )  # fmt: skip
    return path

"""isobit: the same answers, in fewer bits.

>>> import isobit
>>> model = isobit.quantize(net, calibration_data, target="onnxruntime-x86")  # doctest: +SKIP
>>> isobit.export(model, "net.onnx")  # doctest: +SKIP
>>> print(isobit.verify("net.onnx", model, data))  # doctest: +SKIP
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from isobit.core import errors

if TYPE_CHECKING:
    from isobit.graph.from_onnx import load_onnx
    from isobit.recipes import quant_modules
    from isobit.recipes.promise import quantize_within
    from isobit.recipes.workflow import (
        Training,
        advance,
        balanced,
        calibrate,
        export,
        finish,
        penalty,
        prepare,
        quantize,
        recalibrate_batch_norm,
        synthesize,
        train,
        verify,
    )

__all__ = [
    "Training",
    "advance",
    "balanced",
    "calibrate",
    "errors",
    "export",
    "finish",
    "load_onnx",
    "penalty",
    "prepare",
    "quant_modules",
    "quantize",
    "quantize_within",
    "recalibrate_batch_norm",
    "synthesize",
    "train",
    "verify",
]

# Importing torch takes seconds: what needs it is imported when it is first asked for, so that `isobit --help` is quick.
_LATER = tuple(name for name in __all__ if name != "errors")
_ELSEWHERE = {"load_onnx": "isobit.graph.from_onnx", "quantize_within": "isobit.recipes.promise"}


class _Package(ModuleType):
    """Keeps `isobit.export` and `isobit.verify` the functions once the parts of the same name are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _LATER or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'isobit' has no attribute {name!r}")
    found = getattr(import_module(_ELSEWHERE.get(name, "isobit.recipes.workflow")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package

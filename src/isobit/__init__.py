"""isobit: the same answers, in fewer bits.

>>> import isobit
>>> model = isobit.quantize(net, calibration_data, target="onnxruntime-x86")  # doctest: +SKIP
>>> isobit.export(model, "net.onnx")  # doctest: +SKIP
>>> print(isobit.verify("net.onnx", model, data))  # doctest: +SKIP
"""

from isobit.core import errors
from isobit.recipes.workflow import export, prepare, quantize, verify

__all__ = ["errors", "export", "prepare", "quantize", "verify"]

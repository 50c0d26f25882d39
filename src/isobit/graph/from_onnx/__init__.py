"""A float ONNX file as a network: one table of ops for each group, and patterns that exporters take apart."""

from isobit.graph.from_onnx.load import is_quantized, load_onnx

__all__ = ["is_quantized", "load_onnx"]

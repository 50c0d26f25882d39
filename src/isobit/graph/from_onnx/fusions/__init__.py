"""What exporters take apart is put together again: biases, activations, layer norm, attention."""

from isobit.graph.from_onnx.builder import Builder
from isobit.graph.from_onnx.fusions import activation, attention, bias, normalization

RULES = (bias.fuse, activation.fuse, normalization.fuse, attention.fuse)
"""Each looks at one node, and replaces it where it ends its pattern."""


def fuse(b: Builder) -> None:
    """Replace what is a layer of torch.nn; nodes that nobody reads any more stay behind."""
    for rule in RULES:
        for node in list(b.graph.nodes):
            rule(b, node)

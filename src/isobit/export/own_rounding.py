"""Tools that round weights by themselves, with the largest magnitude of each output channel as 127."""

import numpy as np

from isobit.export.encodings import array
from isobit.export.float_network import FloatNetwork


def rounded_otherwise(network: FloatNetwork, tool: str) -> list[str]:
    """A note that counts the output channels where such a tool makes other integers than the simulation's."""
    other = total = 0
    for name, encoding in network.encodings.weights.items():
        w = array(network.program.graph, name)
        k = np.moveaxis(encoding.integers(w), encoding.axis, 0)
        w = np.moveaxis(w, encoding.axis, 0).reshape(len(k), -1)
        largest = np.abs(w).max(1, keepdims=True)
        own = np.rint(w / np.where(largest > 0, largest / np.float32(127), 1))
        other += int((own != k.reshape(w.shape)).any(1).sum())
        total += len(w)
    if not other:
        return []
    return [
        f"{tool} rounds weights by itself, with the largest of each output channel as 127: {other} of {total} channels "
        "get other integers than the simulation's"
    ]

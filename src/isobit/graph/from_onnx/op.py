"""One node of a file, with its inputs already imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, fx

from isobit.core.errors import UnsupportedError
from isobit.graph.from_onnx.values import Value


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Op:
    """`names` are those of the inputs; `scope` is the module that an exporter says the node comes from, or empty."""

    kind: str
    name: str
    inputs: Sequence[Value | None]
    names: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Any]
    scope: str
    opset: int

    def input(self, index: int) -> Value | None:
        """An input, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def needed(self, index: int) -> Value:
        """An input that has to be there."""
        found = self.input(index)
        if found is None:
            raise UnsupportedError(f"its input {index} is missing")
        return found

    def constant(self, index: int) -> Tensor | None:
        """An input where it is a constant."""
        found = self.input(index)
        return found if isinstance(found, Tensor) else None

    def given(self) -> list[Value]:
        """All inputs that are there."""
        return [value for value in self.inputs if value is not None]

    def number(self, name: str, default: float | int | None = None) -> Any:
        """An attribute that is one number; 1e-5 is 1e-5 again, which a file holds as float32."""
        found = self.attributes.get(name, default)
        return float(str(np.float32(found))) if isinstance(found, float) else found

    def flag(self, name: str, default: int = 0) -> bool:
        """An attribute that is 0 or 1."""
        return bool(self.attributes.get(name, default))

    def ints(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """An attribute that is a list of integers."""
        return [int(v) for v in self.attributes.get(name, default)]

    def text(self, name: str, default: str = "") -> str:
        """An attribute that is a text."""
        found = self.attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else str(found)


def is_dynamic(value: Value | None) -> bool:
    """Whether a value is computed from the inputs of the network."""
    return isinstance(value, fx.Node)

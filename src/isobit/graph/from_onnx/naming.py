"""Names of the modules and buffers of an imported network."""

import keyword
import re
from typing import Any, final

from torch import Tensor, fx, nn

from isobit.graph.from_onnx.op import Op

_RESERVED = frozenset({*dir(fx.GraphModule), *dir(nn.Module), "meta", "inf", "nan", "device", "torch", "math"})


@final
class Naming:
    """Hands out names that are free, valid and those of the exported network where the file still tells them."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self._arguments: set[str] = set()

    def candidates(self, op: Op) -> list[str]:
        """Names for the module of a node, the best first: the owner of its weight, of the node, the node itself."""
        named = [n for n, v in zip(op.names, op.inputs, strict=True) if isinstance(v, Tensor)]
        stems = [n.rpartition(".")[0] for n in named if n.endswith((".weight", ".bias", ".running_mean"))]
        found = [*dict.fromkeys(stems), op.scope, path_of(op.name, op.kind)]
        return [valid_path(name) for name in found if name]

    def place(self, module: nn.Module, candidates: list[str]) -> str:
        """Add a module under the first candidate that is free, else under the first with a number; give the name."""
        name = next((c for c in candidates if self._is_free(c)), "")
        count = 1
        while not name:
            count += 1
            numbered = f"{candidates[0]}_{count}"
            name = numbered if self._is_free(numbered) else ""
        owner, _, last = name.rpartition(".")
        parent = self.root
        for part in owner.split(".") if owner else ():
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            child = parent._modules[part]
            assert child is not None
            parent = child
        parent.add_module(last, module)
        return name

    def buffer(self, value: Tensor, wanted: str) -> str:
        """Register a constant at the root under a name like `wanted`; give the name."""
        stem = valid_path(wanted).replace(".", "_")
        name, count = stem, 1
        while not self._is_free(name):
            count += 1
            name = f"{stem}_{count}"
        self.root.register_buffer(name, value)
        return name

    def argument(self, name: str) -> str:
        """The name of an input of forward."""
        stem = re.sub(r"\W", "_", name) or "x"
        stem = f"x_{stem}" if stem[0].isdigit() or keyword.iskeyword(stem) or stem in ("self", "torch") else stem
        while stem in self._arguments:
            stem += "_"
        self._arguments.add(stem)
        return stem

    def _is_free(self, name: str) -> bool:
        """Whether nothing has this name and no layer is on the way to it, nor below it."""
        module: Any = self.root
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part in module._buffers or (i > 0 and type(module) is not nn.Module):
                return False
            if part not in module._modules:
                return True
            module = module._modules[part]
        return False


def path_of(name: str, kind: str) -> str:
    """The dotted path in a node's name, without the op's kind behind a scope.

    >>> path_of("/layer1/layer1.0/conv1/Conv", "Conv"), path_of("/Relu_3", "Relu"), path_of("dense/MatMul", "MatMul")
    ('layer1.0.conv1', 'Relu_3', 'dense')
    """
    raw = [part for part in name.split("/") if part]
    if len(raw) > 1 and re.fullmatch(rf"{re.escape(kind)}(_\d+)?", raw[-1]):
        raw = raw[:-1]
    parts: list[str] = []
    for i, part in enumerate(raw):
        if i and part.startswith(raw[i - 1] + "."):
            parts.pop()  # TorchScript's exporter repeats the list's name before each of its members
        parts.append(part)
    return ".".join(parts)


def valid_path(name: str) -> str:
    """A dotted name that modules can have.

    >>> valid_path("layer1.0.conv"), valid_path("StatefulCall:0"), valid_path("a..class"), valid_path("train")
    ('layer1.0.conv', 'StatefulCall_0', 'a.class_', 'train_')
    """
    parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in name.split(".") if part]
    parts = [f"{p}_" if keyword.iskeyword(p) or p in _RESERVED else p for p in parts]
    return ".".join(parts) or "op"

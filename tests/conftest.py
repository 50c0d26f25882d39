"""What all tests share: PyTorch lists the ONNX operators that it knows once, and not for each of a thousand exports."""

import functools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def known_operators_are_listed_once() -> Iterator[None]:
    """The list is the same each time, and takes as long as the export of a small network."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            from torch.onnx._internal.exporter import _registration

            apis = _registration.onnxscript_apis

            @functools.cache
            def listed() -> Any:
                return apis.get_torchlib_ops()

            patch.setattr(_registration, "onnxscript_apis", SimpleNamespace(get_torchlib_ops=listed))
        except (ImportError, AttributeError):  # another version of PyTorch: the tests take longer
            pass
        yield

"""Each op of ONNX against ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest

from graph.from_onnx.cases import CASES, draws
from graph.from_onnx.files import check


@pytest.mark.parametrize(("name", "seed"), list(draws()))
def test_an_op_computes_what_onnxruntime_computes(name: str, seed: int, tmp_path: Path) -> None:
    check(CASES[name](np.random.default_rng(seed)), tmp_path)

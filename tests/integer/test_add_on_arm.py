"""Add on Arm64 against the steps of its 32-bit kernel, written out with numpy's integers.

The formula was found, and is checked, on ONNX Runtime for Arm64 under emulation: `tools/isa.py`.
"""

import numpy as np
import pytest
import torch

from isobit.core.arithmetic import FLOAT32_NEON
from isobit.integer.ops import add
from isobit.integer.values import Format, Quantized


def quantized(q: np.ndarray, scale: float, zero_point: int) -> Quantized:
    return Quantized(torch.from_numpy(q.astype(np.float32)), Format(np.float32(scale), zero_point, 0, 255))


@pytest.mark.parametrize("seed", range(6))
def test_fixed_ratios(seed: int) -> None:
    rng = np.random.default_rng(seed)
    step = np.float32(rng.uniform(0.01, 0.08))
    scales = [np.float32(np.float32(k / 16) * step) for k in rng.integers(1, 64, 2)]  # sixteenths: many ties
    zeros = [int(z) for z in rng.integers(0, 256, 3)]
    qa, qb = (v.ravel() for v in np.meshgrid(np.arange(256), np.arange(256)))
    ratios = [np.float32(s / step) for s in scales]
    exponent = int(np.float32(max(ratios)).view(np.int32) >> 23) - 127
    shift = np.int32(21 - exponent)
    first, second = (np.int32(np.rint(r * np.float32(2.0 ** int(shift)))) for r in ratios)
    sums = (qa - zeros[0]).astype(np.int32) * first + (qb - zeros[1]).astype(np.int32) * second
    sums = sums + (sums >> 31)  # vsra: one less below 0, so that ties go away from it
    rounded = (sums + (np.int32(1) << (shift - 1))) >> shift
    expected = np.clip(rounded + zeros[2], 0, 255)
    output = Format(step, zeros[2], 0, 255)
    found = add(quantized(qa, scales[0], zeros[0]), quantized(qb, scales[1], zeros[1]), output, FLOAT32_NEON)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("ratios", [(1 - 2**-24, 5 / 16), (1 - 2**-24, 1e-5), (260.5, 2.5), (1e-4, 1e-4)])
def test_ratios_without_a_multiplier(ratios: tuple[float, float]) -> None:
    """Floats then: the same steps in numpy, the fused product and sum rounded once from float64."""
    step = np.float32(0.037)
    scales = [np.float32(np.float32(r) * step) for r in ratios]
    qa, qb = (v.ravel() for v in np.meshgrid(np.arange(256), np.arange(256)))
    product = (qb - 4).astype(np.float32) * scales[1]
    total = ((qa - 19).astype(np.float64) * np.float64(scales[0]) + product).astype(np.float32) / step
    expected = np.clip(np.rint(total + np.float32(44)), 0, 255)
    output = Format(step, 44, 0, 255)
    found = add(quantized(qa, scales[0], 19), quantized(qb, scales[1], 4), output, FLOAT32_NEON)
    assert np.array_equal(found.numpy(), expected)

"""Exact by construction: no exact result near a middle, by fractions; and real engines that agree to the integer."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import isobit
from isobit.algorithms.exact_scales import LIMIT, WIDEST, common_denominator, odd_ratio
from isobit.analysis.rescaling import ratios, rescaling, scale_of
from isobit.core.errors import SettingError, UnsupportedError
from isobit.engines import LiteRt, OnnxRuntime, OpenVino

PIXELS = torch.randint(0, 256, (160, 3, 16, 16), generator=torch.Generator().manual_seed(0)) / 255


class Residual(nn.Module):
    """Two residual blocks, one of them with a convolution in its shortcut, a depthwise layer and a mean of 49."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.a1, self.a2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.b1, self.b2 = nn.Conv2d(16, 24, 3, padding=1, stride=2), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.shortcut = nn.Conv2d(16, 24, 1, stride=2)
        self.c = nn.Conv2d(24, 24, 1)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.a2(torch.relu(self.a1(x))))
        x = self.shortcut(x) + self.b2(nn.functional.relu6(self.b1(x)))
        x = x + self.c(x)
        return self.head(x.mean((2, 3)))


def quantized(target: str = "onnxruntime-x86", **settings: Any) -> fx.GraphModule:
    torch.manual_seed(0)
    return isobit.quantize(Residual().eval(), [PIXELS[:64]], target=target, **settings)


def outputs(model: fx.GraphModule, folder: Path, *engines: Any) -> list[np.ndarray]:
    """Of each engine, from one ONNX file, or the LiteRT file with the same integers."""
    found = []
    for engine in engines:
        suffix = "tflite" if engine.format == "litert" else "onnx"
        path = isobit.export(model, folder / f"net.{suffix}").path
        found.append(engine.load(path).run([PIXELS.numpy()])[0])
    return found


def test_one_file_gives_the_same_integers_on_three_engines_and_in_the_simulation(tmp_path: Path) -> None:
    exact, plain = quantized(exact=True), quantized()
    engines = (OnnxRuntime(), OpenVino(), LiteRt())
    with torch.no_grad():
        simulated = exact(PIXELS).numpy()
    step = scale_of(exact, rescaling(exact).ops[-1].output)
    for found in outputs(exact, tmp_path, *engines):
        assert np.array_equal(np.rint(found / step), np.rint(simulated / step))
    one, *others = outputs(plain, tmp_path, *engines)
    assert any((one != other).any() for other in others), "without `exact` the engines agree by chance"


@pytest.mark.parametrize("target", ["openvino-cpu", "litert", "onnxruntime-x86"])
def test_the_certificate_says_exact_on_openvino(target: str, tmp_path: Path) -> None:
    path = isobit.export(quantized(target, exact=True), tmp_path / "net.onnx").path
    certificate = isobit.verify(path, data=[PIXELS], engine="openvino")
    assert certificate.verdict == "exact", certificate.cause


@pytest.mark.parametrize("target", ["onnxruntime-x86", "openvino-cpu"])
def test_exact_results_keep_their_distance_from_middles(target: str) -> None:
    model = quantized(target, exact=True)
    found, record = rescaling(model), model.meta["exact"]
    assert record.left == () and record.in_float == () and record.ops == len(found.ops)
    rng = np.random.default_rng(0)
    for op in found.ops:
        for row in ratios(model, op)[::5]:
            exact = [Fraction(float(r)).limit_denominator(WIDEST) for r in row]
            for integers in rng.integers(-(2**17), 2**17, (50, len(row))):
                value = sum((f * int(q) for f, q in zip(exact, integers, strict=True)), Fraction(0))
                distance = abs(value - value.numerator // value.denominator - Fraction(1, 2))
                assert float(distance) >= record.margin * (1 - 1e-9)


def test_steps_grow_little_and_accuracy_of_the_sum_stays() -> None:
    plain, exact = quantized(reconstruction="none"), quantized(reconstruction="none", exact=True)
    record = exact.meta["exact"]
    assert 0 < record.median < 0.005 and record.dear == 0
    by_name = {op.name: op for op in rescaling(plain).ops}
    for op in rescaling(exact).ops:
        before, after = scale_of(plain, by_name[op.name].output), scale_of(exact, op.output)
        assert 0.93 < after / before < 1.08
    assert any("keep" in line and "middles" in line for line in exact.meta["notes"])


def test_values_of_an_input_are_kept_from_middles() -> None:
    model = quantized(exact=True)
    ((slot, _),) = rescaling(model).inputs
    steps = np.unique(PIXELS[:64].numpy()).astype(np.float64) / np.float32(scale_of(model, slot))
    assert np.abs(steps - np.floor(steps) - 0.5).min() > 1e-3
    noisy = isobit.quantize(
        nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), [torch.rand(100, 3, 16, 16)], target="litert", exact=True
    )
    assert any("more than 65,536 different values" in line for line in noisy.meta["notes"])


def test_an_input_that_is_added_keeps_its_scale() -> None:
    """What is said of its values holds at the end: the sum goes by the input, not the input by the sum."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.conv(x) + x)

    torch.manual_seed(0)
    model = isobit.quantize(Added().eval(), [PIXELS[:64]], target="onnxruntime-x86", exact=True)
    ((slot, _),) = rescaling(model).inputs
    steps = np.unique(PIXELS[:64].numpy()).astype(np.float64) / np.float32(scale_of(model, slot))
    distance = np.abs(steps - np.floor(steps) - 0.5).min()
    assert distance > 1e-3 and model.meta["exact"].left == ()
    assert any(f"keep {distance:.2g} of a step" in line for line in model.meta["notes"])


@given(st.lists(st.floats(1e-4, 8.0), min_size=1, max_size=5), st.sampled_from([1, 3, 15]), st.booleans())
def test_odd_ratio_is_the_nearest_of_all(wanted: list[float], base: int, down: bool) -> None:
    limit = 63
    a, b = odd_ratio(np.array(wanted), base=base, limit=limit, down=down)
    for r, top, bottom in zip(wanted, a.tolist(), b.tolist(), strict=True):
        assert bottom % 2 == 1 and bottom % base == 0 and bottom <= limit
        tops = range(int(r * limit) + 3)
        all_ = [(t / d) for d in range(base, limit + 1, 2 * base) for t in tops]
        side = [v for v in all_ if v > 0 and (v <= r * (1 + 1e-9) if down else v >= r * (1 - 1e-9))]
        if side:
            assert top / bottom == pytest.approx(max(side) if down else min(side), rel=1e-9)


def test_common_denominators_by_hand() -> None:
    assert common_denominator(np.array([[0.5]])) == 2
    assert common_denominator(np.array([[2 / 7, 5 / 21]])) == 21
    assert common_denominator(np.array([[np.sqrt(2) / 300]])) == 0
    assert LIMIT % 2 == WIDEST % 2 == 1


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"target": "tvm"}, UnsupportedError, "powers of two"),
        ({"target": "onnxruntime-dynamic"}, SettingError, "calibrated scales"),
        ({"activation_quantizer": "lsq"}, SettingError, "calibrated scales"),
        ({"reconstruction": {"name": "qdrop", "iterations": 2}}, UnsupportedError, "gptq or adaround"),
    ],
)
def test_what_cannot_be_exact_is_refused(settings: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        quantized(exact=True, **settings)


def test_training_refuses_it() -> None:
    with pytest.raises(SettingError, match=r"isobit\.quantize"):
        isobit.prepare(Residual().eval(), PIXELS[:2], target="litert", exact=True)


def _modules(model: fx.GraphModule) -> Sequence[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.MaxPool2d)]


def test_the_rounding_in_front_of_an_add_is_kept_where_the_target_rounds_there() -> None:
    assert len(_modules(quantized(exact=True))) == 4
    assert _modules(quantized("openvino-cpu", exact=True)) == _modules(quantized()) == []

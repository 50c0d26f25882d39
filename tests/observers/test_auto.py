"""The choice of a range: the mildest rule near the least error, per scale, with its reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import isobit
from isobit.core.errors import CalibrationError, SettingError
from isobit.core.granularity import PerChannel
from isobit.core.records import RunRecord, from_json, to_json
from isobit.core.scheme import Scheme
from isobit.observers import OBSERVERS, Auto
from isobit.observers.auto import RULES, AutoObserver
from isobit.recipes.run import record_run
from isobit.report import write_report


def shown(scheme: Scheme, x: torch.Tensor, **settings: float) -> AutoObserver:
    observer = Auto(**settings).build(scheme)  # type: ignore[arg-type]
    observer.see(x)
    return observer


def scale_of(name: str, scheme: Scheme, x: torch.Tensor) -> torch.Tensor:
    observer = OBSERVERS[name]().build(scheme)
    observer.see(x)
    return observer.qparams().scale  # type: ignore[no-any-return]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_what_nothing_improves_keeps_min_max_and_says_nothing() -> None:
    for bits in (4, 8):
        highest = 2 ** (bits - 1) - 1
        x = (torch.arange(2000) % (2 * highest + 1) - highest) / highest  # on the levels of min-max
        scheme = Scheme(bits=bits, narrow=True)
        observer = shown(scheme, x)
        assert observer.choice() == ""
        assert torch.equal(observer.qparams().scale, scale_of("min_max", scheme, x))


def test_slack_0_is_the_least_error_and_much_slack_is_min_max() -> None:
    x, scheme = normal(50_000) ** 3, Scheme(bits=4)

    def error(scale: torch.Tensor) -> float:
        return float(((x / scale).round().clamp(-8, 7) * scale - x).square().mean())

    errors = {name: error(scale_of(name, scheme, x)) for name in RULES}
    assert error(shown(scheme, x, slack=0.0).qparams().scale) <= 1.01 * min(errors.values())
    assert error(shown(scheme, x).qparams().scale) <= 1.11 * min(errors.values())
    assert torch.equal(shown(scheme, x, slack=1e9).qparams().scale, scale_of("min_max", scheme, x))


def test_the_widest_of_those_near_the_least() -> None:
    x, scheme = normal(50_000) ** 3, Scheme(bits=4)
    scales = [shown(scheme, x, slack=slack).qparams().scale.item() for slack in (0.0, 0.1, 0.5, 2.0, 1e9)]
    assert scales == sorted(scales)
    assert scales[0] < scales[-1]


def test_each_channel_chooses_for_itself_and_the_text_counts() -> None:
    x = torch.stack([(torch.arange(1000) % 15 - 7) / 7, normal(1000) ** 3, normal(1000, seed=1) ** 3])
    scheme = Scheme(bits=4, narrow=True, granularity=PerChannel(0))
    observer = shown(scheme, x)
    q, text = observer.qparams(), observer.choice()
    plain = scale_of("min_max", scheme, x)
    assert q.scale[0] == plain[0] and bool((q.scale[1:] < plain[1:]).all())
    assert text.startswith("min_max 1, ") and " of 3 scales: " in text
    errors = [((x / s[:, None]).round().clamp(-7, 7) * s[:, None] - x).square().mean(1)[1:] for s in (q.scale, plain)]
    gain = 1 - (errors[0] / errors[1]).mean()
    assert int(text.split(": ")[1].split("%")[0]) == pytest.approx(100 * float(gain), abs=1)


def test_refuses() -> None:
    with pytest.raises(SettingError, match="slack has to be at least 0"):
        Auto(slack=-0.1)
    with pytest.raises(CalibrationError, match="saw no data"):
        Auto().build(Scheme()).choice()


def test_the_reasons_reach_the_record_and_the_report(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)).eval()
    data = [normal(16, 3, 8, 8) ** 3]
    bits: dict[str, Any] = {"bits": 4, "layer_bits": {"*": 4}}
    plain = isobit.quantize(net, data, target="onnxruntime-x86", **bits)
    assert plain.meta["ranges"] == ()
    model = isobit.quantize(net, data, target="onnxruntime-x86", activation_observer="auto", **bits)
    record = record_run(model)
    assert record.ranges == model.meta["ranges"] != ()
    assert not any(choice.tensor.endswith(".weight") for choice in record.ranges)
    assert from_json(RunRecord, to_json(record)) == record
    pytest.importorskip("jinja2", reason="the report is a Jinja template")
    write_report(record, tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    for choice in record.ranges:
        assert "less squared error than min_max" in choice.reason
        assert choice.tensor in text and choice.reason in text

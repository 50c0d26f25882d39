"""Headline facts against closed forms, scipy and hand-made records."""

from dataclasses import replace

import pytest
from scipy.stats import binomtest

from isobit.core.records import Accuracy, Certificate, Latency, LayerRecord
from isobit.report import summary
from report import example


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (3488, 5000), (1, 3)])
def test_wilson_equals_scipy(right: int, total: int) -> None:
    expected = binomtest(right, total).proportion_ci(0.95, method="wilson")
    assert summary.wilson(right, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def certificate(verdict, cause: str = "") -> Certificate:
    return replace(example.example().certificates[0], verdict=verdict, cause=cause)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [((), None), (("exact",), "exact"), (("exact", "bounded"), "bounded"), (("broken", "bounded", "exact"), "broken")],
)
def test_a_run_is_as_good_as_its_worst_certificate(verdicts, expected) -> None:
    run = replace(example.bare(), certificates=tuple(certificate(v, f"because {v}") for v in verdicts))
    assert summary.verdict(run) == expected
    assert summary.causes(run) == (f"because {expected}" if expected else "")


@pytest.mark.parametrize(
    ("executions", "witness"),
    [
        (("float", "simulation"), "simulation"),
        (("simulation", "reference", "float"), "reference"),
        (("float", "simulation", "onnxruntime", "openvino"), "onnxruntime"),
        (("float",), None),
        ((), None),
    ],
)
def test_the_engine_is_the_best_witness(executions: tuple[str, ...], witness: str | None) -> None:
    run = replace(example.bare(), accuracy=tuple(Accuracy(execution=e, right=6, total=10) for e in executions))
    plain, quantized = summary.float_and_quantized(run)
    assert (plain is not None) == ("float" in executions)
    assert (quantized and quantized.execution) == witness


def test_accuracies_of_certificates_join_without_repetition() -> None:
    run = example.example()
    rows = summary.all_accuracies(run)
    assert [r.execution for r in rows] == ["float", "simulation", "reference", "onnxruntime"]
    assert rows[0].difference is None
    assert rows[3].difference == pytest.approx(3479 / 5000 - 3488 / 5000)
    assert summary.accuracy_rows([Accuracy(execution="float", right=0, total=0)]) == []


def test_the_axis_holds_every_interval() -> None:
    rows = summary.all_accuracies(example.example())
    line = summary.axis(rows)
    places = [line.place(x) for r in rows for x in (r.low, r.share, r.high)]
    assert all(0 < p < 100 for p in places)
    edge = summary.accuracy_rows([Accuracy(execution="float", right=5, total=5)])
    assert summary.axis(edge).place(1.0) == 100


def test_ratios() -> None:
    run = replace(example.bare(), float_bytes=4000, quantized_bytes=1000, macs=10, bitops=640)
    assert summary.size_ratio(run) == 4
    assert summary.bitops_ratio(run) == 16
    assert summary.size_ratio(example.bare()) is None
    assert summary.bitops_ratio(example.bare()) is None
    time = Latency(engine="e", batch=1, float_ms=2.0, quantized_ms=1.0, speedup=2.0, runs=3)
    assert summary.all_latencies(replace(run, latency=(time, time))) == [time]


def test_weakest_and_most_sensitive_skip_what_was_not_measured() -> None:
    layers = (
        LayerRecord(name="a", op="conv2d", sqnr_db=None, sensitivity=0.2),
        LayerRecord(name="b", op="conv2d", sqnr_db=12.0, sensitivity=None),
        LayerRecord(name="c", op="conv2d", sqnr_db=-3.0, sensitivity=0.7),
        LayerRecord(name="d", op="conv2d", sqnr_db=float("nan"), sensitivity=float("nan")),
    )
    run = replace(example.bare(), layers=layers)
    low, worst = summary.weakest(run), summary.most_sensitive(run)
    assert low is not None
    assert worst is not None
    assert (low.name, worst.name) == ("c", "c")
    assert summary.weakest(example.bare()) is None


def test_bits_and_schemes_are_counted() -> None:
    run = example.example(bits=4)
    assert dict(summary.bit_widths(run)) == {"W4A4": 19, "W8A8": 2, "A4": 8}
    assert sum(n for *_, n in summary.schemes(run)) == sum(len(x.tensors) for x in run.layers)
    assert summary.schemes(run)[0][0] == "weight"


def test_kernel_calls_add_up() -> None:
    assert dict(summary.precisions(example.example().certificates[0])) == {
        "int8": 29,
        "float32": 1,
        "float32 to int8": 1,
    }

"""A latency table answers for a layer and widths, and says clearly what it does not have."""

import pytest

from isobit.core.errors import SettingError, UnknownNameError
from isobit.core.latency_table import LatencyTable, LayerLatency, LayerTime, NetworkTime
from isobit.core.records import from_json, to_json


def time(bits: int, ms: float | None, **more: object) -> LayerTime:
    return LayerTime(weight_bits=bits, activation_bits=bits, ms=ms, **more)  # type: ignore[arg-type]


TABLE = LatencyTable(
    target="t", engine="e", engine_version="e 1", instruction_set="i", processor="p", threads=1, batch=1, runs=5,
    layers=(
        LayerLatency(name="input", ops=("input",), what="QuantizeLinear", times=(time(8, 0.5),)),
        LayerLatency(
            name="conv", ops=("conv", "relu"), what="Conv, Relu",
            times=(time(8, 2.0, in_float=("Conv",)), time(32, 6.0)),
        ),
        LayerLatency(name="odd", ops=("odd",), what="Odd", times=(time(8, None, refused="no kernel"), time(32, 1.0))),
    ),
    network=(
        NetworkTime(weight_bits=8, activation_bits=8, ms=5.0, layers_ms=2.5, left_out=("odd",)),
        NetworkTime(weight_bits=32, activation_bits=32, ms=3.5, layers_ms=7.0),
    ),
)  # fmt: skip


def test_seconds_of_a_layer_and_its_share_of_the_network() -> None:
    assert TABLE.seconds("conv", 8, 8) == pytest.approx(2e-3)
    assert TABLE.seconds("conv", 32, 32) == pytest.approx(6e-3)
    assert TABLE.share("conv", 8, 8) == pytest.approx(2e-3 * 5.0 / 2.5)
    assert TABLE.share("conv", 32, 32) == pytest.approx(6e-3 * 3.5 / 7.0)
    assert TABLE.in_float("conv", 8, 8) == ("Conv",)
    assert TABLE.in_float("conv", 32, 32) == ()


def test_what_takes_no_time_of_its_own() -> None:
    assert TABLE.seconds("relu", 8, 8) == 0.0
    assert TABLE.in_float("relu", 8, 8) == ()
    assert TABLE.seconds("input", 32, 32) == 0.0, "the float network has no quantizer"


def test_what_the_table_does_not_have() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'conv'"):
        TABLE.seconds("convv", 8, 8)
    with pytest.raises(SettingError, match="no times at W4A8, it has W8A8, W32A32"):
        TABLE.seconds("conv", 4, 8)
    with pytest.raises(SettingError, match="odd could not be measured at W8A8: no kernel"):
        TABLE.seconds("odd", 8, 8)


def test_a_table_goes_through_json() -> None:
    assert from_json(LatencyTable, to_json(TABLE)) == TABLE

"""Exceptions by layer name."""

import pytest

from isobit.core.errors import SettingError, UnknownNameError
from isobit.graph.rules import Rules


def test_patterns_match_as_in_a_shell_and_the_first_wins() -> None:
    rules = Rules(keep_float=("head*", "layer?.conv"), bits={"layer1.*": 4, "layer*": (2, 8)})
    assert rules.kept_by("head.fc") == "head*"
    assert rules.kept_by("layer3.conv") == "layer?.conv"
    assert rules.kept_by("layer13.conv") is None
    assert rules.kept_by("Head.fc") is None
    assert rules.bits_of("layer1.conv") == (4, 4)
    assert rules.bits_of("layer2.conv") == (2, 8)
    assert rules.bits_of("stem") is None
    assert Rules(quantize=("a",)).forced_by("a") == "a"


def test_a_rule_that_matches_nothing_is_an_error() -> None:
    rules = Rules(keep_float=("conv1",), bits={"layer1.*": 4})
    rules.check(["conv1", "layer1.0"])
    with pytest.raises(UnknownNameError, match=r"unknown layer 'layer1\.\*'"):
        rules.check(["conv1", "layer2.0"])
    with pytest.raises(UnknownNameError, match="did you mean 'conv2'"):
        rules.check(["conv2", "layer1.0"])


@pytest.mark.parametrize("bits", [0, 17, True, 4.0, "4", (4, 0), (4, None)])
def test_widths_that_are_none(bits: object) -> None:
    with pytest.raises(SettingError, match="whole numbers from 1 to 16"):
        Rules(bits={"a": bits})  # type: ignore[dict-item]

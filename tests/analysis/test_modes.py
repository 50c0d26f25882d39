import pytest
import torch

from analysis.nets import branches, mlp, state
from isobit.analysis import layer_error
from isobit.analysis.analyze import analyze
from isobit.analysis.distribution import distributions
from isobit.analysis.layer_error import accumulated, isolated
from isobit.analysis.modes import in_eval, measured, slots_in_mode
from isobit.core.errors import CalibrationError, SettingError
from isobit.graph.insert import slots
from isobit.recipes.workflow import prepare


def test_modes_come_back_also_after_an_exception() -> None:
    model, _ = mlp()
    slots(model)[1].mode = "float"
    before = state(model)
    with slots_in_mode(model, "float") as chosen:
        assert {s.mode for s in chosen} == {"float"}
    assert state(model) == before
    with pytest.raises(ZeroDivisionError), slots_in_mode(model, "observe"):
        raise ZeroDivisionError
    assert state(model) == before


def test_training_flags_come_back_also_after_an_exception() -> None:
    model, _ = mlp()
    model.train()
    next(model.children()).eval()
    before = state(model)
    with pytest.raises(ZeroDivisionError), in_eval(model):
        assert not any(m.training for m in model.modules())
        assert torch.is_inference_mode_enabled()
        raise ZeroDivisionError
    assert state(model) == before
    assert not torch.is_inference_mode_enabled()


def test_measured_yields_the_slots_that_quantize() -> None:
    model, _ = mlp()
    off = slots(model)[0]
    off.mode = "float"
    with measured(model) as active:
        assert active == frozenset(slots(model)) - {off}
        assert {s.mode for s in slots(model)} == {"float"}


@pytest.mark.parametrize("analysis", [accumulated, isolated, distributions, analyze])
def test_every_analysis_leaves_the_model_as_it_was(analysis) -> None:
    model, x = branches()
    model.train()
    model.get_submodule("stem").eval()
    before, grad = state(model), torch.is_grad_enabled()
    analysis(model, [x])
    assert state(model) == before
    assert torch.is_grad_enabled() == grad


@pytest.mark.parametrize("analysis", [accumulated, isolated, distributions, analyze])
def test_every_analysis_leaves_the_model_as_it_was_when_it_fails(analysis, monkeypatch) -> None:
    model, x = branches()
    model.train()
    before = state(model)
    with pytest.raises(CalibrationError, match="does not take the analysis data, at "):
        analysis(model, [torch.randn(4, 5, 8, 8)])
    assert state(model) == before

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(layer_error.fx.Interpreter, "call_function", fail)  # in the middle of a run
    with pytest.raises(ZeroDivisionError):
        analysis(model, [x])
    assert state(model) == before


def test_a_model_that_is_not_calibrated_is_refused() -> None:
    net = torch.nn.Linear(4, 3)
    with pytest.raises(SettingError, match=r"isobit\.quantize"):
        accumulated(torch.fx.symbolic_trace(net), [torch.randn(2, 4)])
    with pytest.raises(CalibrationError, match="calibrat"):
        accumulated(prepare(net, torch.randn(2, 4), target="tvm"), [torch.randn(2, 4)])

"""The one-line replacement gives what isobit.prepare gives, in the user's own object and loop."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn import Conv2d

import isobit
from isobit.core.errors import CalibrationError, ModelError, SettingError, UnknownNameError
from isobit.graph.convert import convert, hash_integers
from isobit.graph.insert import preparation, slots
from isobit.quantizers import Lsq, Slb
from isobit.recipes import quant_modules
from isobit.recipes.quant_modules import recipe_as_built


class Residual(nn.Module):
    """A user's network: a subclass of a layer, an imported name, a batch norm, a residual, a functional."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.body = Own(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.body(x))
        return self.head(x.mean((2, 3)))

    def features(self, x: Tensor) -> Tensor:
        return self.norm(self.stem(x))


class Own(nn.Conv2d):
    """A user's own convolution."""


DATA = list(torch.randn(3, 16, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
LABELS = torch.arange(16) % 5


@pytest.fixture(autouse=True)
def nothing_stays_active() -> Iterator[None]:
    yield
    quant_modules.deactivate()


def built() -> Residual:
    """The same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Residual()
    net.norm.running_mean.normal_(generator=torch.Generator().manual_seed(2))
    return net


def trained(net: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
    """A user's loop, as it was before."""
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    net.train()
    for x in DATA:
        optimizer.zero_grad()
        F.cross_entropy(net(x), LABELS).backward()
        optimizer.step()
    return net


SETTINGS: dict[str, dict[str, Any]] = {
    "post-training": {"target": "tensorrt"},
    "lsq": {"target": "onnxruntime-x86", "bits": 4, "method": "lsq", "bn_fold": 4},
    "academic": {"target": "academic", "bits": 3, "weight_quantizer": Lsq(damp=False), "activation_quantizer": "lsq"},
    "kept": {"target": "snpe", "keep_float": ("body",), "layer_bits": {"head": (4, 8)}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_integers_as_by_prepare(name: str) -> None:
    settings = SETTINGS[name]
    expected = isobit.prepare(built(), DATA[0], **settings)
    isobit.calibrate(expected, DATA)
    before = hash_integers(convert(isobit.finish(copy.deepcopy(expected))))

    quant_modules.initialize(**settings)
    net = built()
    quant_modules.deactivate()
    assert type(net) is Residual
    assert [type(m) for m in (net.stem, net.body, net.head)] == [Conv2d, Own, nn.Linear]
    assert list(net.state_dict()) == list(built().state_dict())
    isobit.calibrate(net, DATA)
    assert net.meta["recipe"] == expected.meta["recipe"]
    assert hash_integers(convert(isobit.finish(copy.deepcopy(net)))) == before
    trained(expected), trained(net)
    assert hash_integers(convert(isobit.finish(net))) == hash_integers(convert(isobit.finish(expected))) != before


def test_ends_in_a_verified_file(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with quant_modules.quantized_layers(target="onnxruntime-x86", bits=4, method="lsq"):
        net = built()
    isobit.calibrate(net, DATA)
    isobit.export(isobit.finish(trained(net)), tmp_path / "net.onnx")
    assert isobit.verify(tmp_path / "net.onnx", net, DATA).verdict == "exact"


def test_what_was_built_elsewhere_stays_in_float() -> None:
    quant_modules.initialize(target="snpe")
    net = built()
    quant_modules.deactivate()
    net.head = nn.Linear(8, 5)
    isobit.calibrate(net, DATA)
    assert {w.name for w in preparation(net).plan.weights} == {"stem", "body"}
    assert net.meta["recipe"]["keep_float"] == ["head"]


def test_classes_can_be_left_out() -> None:
    quant_modules.initialize(["Linear"], target="snpe")
    net = built()
    isobit.calibrate(net, DATA)
    assert {w.name for w in preparation(net).plan.weights} == {"stem", "body"}
    with pytest.raises(UnknownNameError, match="unknown layer class 'Linaer': did you mean 'Linear'"):
        quant_modules.initialize(["Linaer"])


def test_parameters_stay_the_same_objects() -> None:
    """So an optimizer that was made too early still trains the weights."""
    quant_modules.initialize(target="tensorrt", bn_fold=4)
    net = built()
    weight, optimizer = net.body.weight, torch.optim.SGD(net.parameters(), lr=0.05)
    isobit.calibrate(net, DATA)
    assert net.body.weight is weight
    start = weight.detach().clone()
    trained(net, optimizer)
    assert not torch.equal(weight, start)


def test_a_copy_is_built_as_its_original_was() -> None:
    with quant_modules.quantized_layers(target="tvm", bits=5):
        net = built()
    assert recipe_as_built(copy.deepcopy(net)).weight_bits == 5
    copied = copy.deepcopy(net)
    isobit.calibrate(copied, DATA)
    assert type(net) is Residual
    assert not slots(net)
    again = copy.deepcopy(copied)
    assert torch.equal(again(DATA[0]), copied(DATA[0]))
    assert again.graph.owning_module is again
    assert copied.graph.owning_module is copied


def test_settings_hold_until_they_are_replaced_and_again_behind_a_with() -> None:
    quant_modules.initialize(bits=8)
    first = nn.Linear(2, 2)
    with quant_modules.quantized_layers(target="tvm", bits=4):
        second = nn.Linear(2, 2)
    third = nn.Linear(2, 2)
    quant_modules.initialize(bits=6)
    fourth = nn.Linear(2, 2)
    quant_modules.deactivate()
    assert [recipe_as_built(n).weight_bits for n in (first, second, third, fourth)] == [8, 4, 8, 6]
    assert recipe_as_built(first).target == "tensorrt"
    with pytest.raises(SettingError, match="no layer of it was built after"):
        recipe_as_built(nn.Linear(2, 2))
    with pytest.raises(SettingError, match="under different settings, for tensorrt and tvm"):
        isobit.calibrate(nn.Sequential(first, second), [torch.randn(4, 2)])
    with pytest.raises(RuntimeError, match="of the user"), quant_modules.quantized_layers(bits=4):
        raise RuntimeError("of the user")
    assert "isobit_recipe" not in nn.Linear(2, 2).__dict__


def test_errors_come_early_and_say_what_to_do() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'tensorrt'"):
        quant_modules.initialize(target="tensort")
    with pytest.raises(UnknownNameError, match="did you mean 'weight_quantizer'"):
        quant_modules.initialize(weight_quantiser="lsq")
    with pytest.raises(UnknownNameError, match="unknown key in weight_quantizer 'begn': did you mean 'begin'"):
        quant_modules.initialize(weight_quantizer={"name": "slb", "begn": 0.2})
    with pytest.raises(SettingError, match=r"isobit\.quant_modules\.initialize"):
        isobit.calibrate(built(), DATA)
    with pytest.raises(SettingError, match=r"isobit\.prepare or isobit\.quantize"):
        isobit.export(built(), "net.onnx")  # type: ignore[arg-type]
    with quant_modules.quantized_layers():
        net = built()
    for too_early in (isobit.finish, lambda net: isobit.export(net, "net.onnx")):
        with pytest.raises(SettingError, match=r"not yet: call isobit\.calibrate"):
            too_early(net)
    assert "isobit_recipe" not in nn.Linear(2, 2).__dict__


def test_a_class_that_cannot_change() -> None:
    class Slotted(nn.Module):
        __slots__ = ("extra",)

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

    with quant_modules.quantized_layers():
        net = Slotted()
    with pytest.raises(ModelError, match=r"a Slotted cannot be quantized in place .*: use isobit\.prepare"):
        isobit.calibrate(net, [torch.randn(8, 4)])
    assert isinstance(isobit.prepare(net, torch.randn(8, 4), target="tensorrt"), fx.GraphModule)


def test_own_loop_calls() -> None:
    settings: dict[str, Any] = {"bits": 4, "target": "academic", "bn_fold": -1}
    model = isobit.prepare(built(), DATA[0], weight_quantizer=Slb(begin=0.2, freeze=0.6, sharpest=9.0), **settings)
    isobit.calibrate(model, DATA)
    searched = [s.quantizer for s in slots(model) if s.point == "body.weight"]
    seen = []
    for epoch in range(10):
        assert isobit.advance(model, epoch / 10) == 1  # the first and the last layer have 8 bits, and so LSQ
        seen.append(round(float(searched[0].sharpness), 4))
    assert seen == [1.0, 1.0, 1.0, 1.7321, 3.0, 5.1962, 9.0, 9.0, 9.0, 9.0]
    assert isobit.penalty(model).item() == 0
    assert isobit.recalibrate_batch_norm(model, DATA) == 1
    with pytest.raises(SettingError, match="from 0 to 1, got 10"):
        isobit.advance(model, 10)

    pact = isobit.prepare(built(), DATA[0], method="pact", **settings)
    isobit.calibrate(pact, DATA)
    levels = [s.quantizer.alpha for s in slots(pact) if s.point and hasattr(s.quantizer, "alpha")]
    expected = 2e-4 * sum(float(level.detach().square().sum()) for level in levels)
    assert isobit.penalty(pact).item() == pytest.approx(expected, rel=1e-6)
    assert isobit.advance(pact, 0.5) == 0
    isobit.penalty(pact).backward()
    assert all(level.grad is not None for level in levels)


def test_the_trainer_wants_it_calibrated_first(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="Lightning is not installed")
    quant_modules.initialize(target="tensorrt", method="lsq")
    net = built()
    labelled = [(x, LABELS) for x in DATA]

    class Labelled:
        steps = len(labelled)

        def epoch(self, number: int, *, rank: int = 0, ranks: int = 1) -> Any:
            return labelled

    settings = isobit.Training(epochs=1)
    with pytest.raises(CalibrationError, match="stem has no range yet: calibrate the model"):
        isobit.train(net, Labelled(), labelled, settings, folder=tmp_path / "run")
    isobit.calibrate(net, DATA)
    record = isobit.train(net, Labelled(), labelled, settings, folder=tmp_path / "run")
    assert len(record.epochs) == 1 and not record.not_converged

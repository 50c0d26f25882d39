"""Distillation: its errors are their formulas, feature maps are the float network's, and students follow teachers."""

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isobit
from algorithms.blobs import Blobs, Unlabelled, evaluation, network, prepared
from isobit.algorithms.distillation import (
    Distillation,
    feature_error,
    feature_places,
    output_error,
    soft_targets,
    tapped,
)
from isobit.algorithms.training import Training, train
from isobit.benchmark.models import DigitsResNet, MobileNetV2, cifar10_resnet20
from isobit.core.errors import CalibrationError, SettingError, UnknownNameError
from isobit.graph.slots import Slot

needs_lightning = pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="Lightning is not installed")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_soft_targets_are_the_divergence_and_its_gradient() -> None:
    student, teacher = random(5, 4).requires_grad_(), random(5, 4, seed=1)
    t = 3.0
    p, q = F.softmax(teacher / t, 1), F.softmax(student.detach() / t, 1)
    loss = soft_targets(student, teacher, t)
    torch.testing.assert_close(loss.detach(), t * t * (p * (p / q).log()).sum() / 5, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(grad, t * (q - p) / 5, rtol=1e-12, atol=1e-15)


def test_the_output_error_is_the_mean_square_and_its_gradient() -> None:
    student, teacher = random(5, 4).requires_grad_(), random(5, 4, seed=1)
    loss = output_error(student, teacher)
    difference = student.detach() - teacher
    torch.testing.assert_close(loss.detach(), (difference**2).sum() / 20, rtol=1e-12, atol=0)
    (grad,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(grad, difference / 10, rtol=1e-12, atol=0)


def test_the_feature_error_is_relative_to_each_map_of_the_teacher() -> None:
    maps = [random(3, 2, 4, 4).requires_grad_(), random(3, 7, seed=1).requires_grad_()]
    wanted = [100 * random(3, 2, 4, 4, seed=2), random(3, 7, seed=3)]
    loss = feature_error(maps, wanted)
    parts = [((x.detach() - t) ** 2).sum() / (t**2).sum() for x, t in zip(maps, wanted, strict=True)]
    torch.testing.assert_close(loss.detach(), (parts[0] + parts[1]) / 2, rtol=1e-12, atol=0)
    for grad, x, t in zip(torch.autograd.grad(loss, maps), maps, wanted, strict=True):
        torch.testing.assert_close(grad, (x.detach() - t) / (t**2).sum(), rtol=1e-12, atol=0)
    assert float(feature_error(wanted, wanted)) == 0.0
    assert float(feature_error([0 * t for t in wanted], wanted)) == 1.0
    assert float(feature_error([torch.zeros(3)], [torch.zeros(3)])) == 0.0  # a dead map of the teacher
    half = [torch.full((8,), 300.0, dtype=torch.float16)]  # whose square is no float16
    assert float(feature_error([2 * half[0]], half)) == 1.0


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize(("soft", "features"), [(0.0, 0.0), (0.3, 0.0), (1.0, 0.0), (0.0, 2.0), (0.3, 2.0)])
def test_the_loss_is_the_weighted_sum(soft: float, features: float, labels: bool) -> None:
    teacher, x = network().eval(), evaluation()[0][0]
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student[0].weight += 0.1
        student[6].weight *= 1.3
    settings = Training(distillation=soft, temperature=2.0, feature_distillation=features, labels=labels)
    both = Distillation(student, teacher, settings)
    logits, maps = both.student(x)
    supervised = torch.tensor(0.7) if labels else None
    loss = both.loss((x,), logits, maps, supervised)
    y, t = student(x), teacher(x)
    first = 0.7 if labels else (y - t).square().mean()
    want = (1 - soft) * first + soft * soft_targets(y, t, 2.0)
    if features:
        y, t = student[:6](x), teacher[:6](x)  # what the last layer reads: there are no blocks
        want = want + features * (y - t).square().sum() / t.square().sum()
    torch.testing.assert_close(loss, want)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "DigitsResNet": (DigitsResNet, (2, 1, 8, 8), ["block1", "block2", "block3"]),
    "ResNet-20": (cifar10_resnet20, (2, 3, 16, 16), [f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2)]),
    "MobileNetV2": (MobileNetV2, (2, 3, 32, 32), [f"features.{i}" for i in range(1, 18)]),
}


FOLDED = [(name, bn_fold) for name in ("DigitsResNet", "ResNet-20") for bn_fold in (-1, 0, 2, 4)]


@pytest.mark.parametrize(("name", "bn_fold"), [*FOLDED, ("MobileNetV2", -1), ("MobileNetV2", 4)])
def test_maps_of_a_captured_network_are_those_of_the_float_one(name: str, bn_fold: int) -> None:
    """Uncalibrated quantizers pass everything through."""
    make, shape, blocks = NETWORKS[name]
    torch.manual_seed(0)
    net, x = make().eval(), torch.randn(*shape)
    model = isobit.prepare(net, x, target="tensorrt", bits=4, method="lsq", bn_fold=bn_fold).eval()
    places = feature_places(model)
    assert places == feature_places(net)
    assert [p.layer for p in places if not p.is_input] == blocks
    assert [p.layer for p in places if p.is_input] in (["linear"], ["classifier.1"])
    before = model.state_dict().keys()
    want, found = tapped(net, places)(x), tapped(model, places)(x)
    assert model.state_dict().keys() == before
    for a, b in zip([want[0], *want[1]], [found[0], *found[1]], strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_maps_are_taken_in_front_of_their_quantizers_and_carry_gradients() -> None:
    torch.manual_seed(0)
    net, x = DigitsResNet().eval(), torch.randn(4, 1, 8, 8)
    model = isobit.prepare(net, x, target="tensorrt", bits=2, method="lsq", bn_fold=4)
    isobit.calibrate(model, [x])
    found: list[Tensor] = []
    slot = next(m for m in model.modules() if isinstance(m, Slot) and m.point == "block2.relu2")
    slot.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    logits, (maps,) = tapped(model, feature_places(model, ("block2",)))(x)
    assert torch.equal(maps, found[0])
    assert torch.equal(logits, model(x))
    weights = [model.get_submodule(f"block2.conv{i}").weight for i in (1, 2)]
    assert all(bool(grad.any()) for grad in torch.autograd.grad(maps.square().sum(), weights))


def test_single_layers_by_name() -> None:
    net, x = network().eval(), evaluation()[0][0]
    (_, maps) = tapped(net, feature_places(net, ("3", "1")))(x)
    assert torch.equal(maps[1], net[1](net[0](x)))
    assert torch.equal(maps[0], net[3](net[2](maps[1])))
    model = prepared(bn_fold=4, net=net)
    for slot in model.modules():
        if isinstance(slot, Slot):
            slot.mode = "float"
    (_, folded) = tapped(model.eval(), feature_places(model, ("3", "1")))(x)  # "1" is the batch norm, folded with "0"
    for a, b in zip(maps, folded, strict=True):
        torch.testing.assert_close(a, b)


def test_a_map_that_a_layer_overwrites_is_kept() -> None:
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True))
    x = torch.randn(2, 2, 6, 6)
    (_, (maps,)) = tapped(net, feature_places(net, ("0",)))(x)
    assert torch.equal(maps, net[0](x)) and float(maps.detach().min()) < 0


def distil(student: nn.Module, teacher: nn.Module, *layers: str) -> Distillation:
    return Distillation(student, teacher, Training(feature_distillation=1.0, feature_layers=layers))


class Two(nn.Module):
    """A block with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.ModuleDict({"a": nn.Conv2d(2, 4, 3), "b": nn.Conv2d(2, 4, 3)})
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.pair(x)
        return (a + b.relu()).mean((2, 3))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


def test_layers_that_cannot_be_compared_say_why() -> None:
    teacher, x = network(), evaluation()[0][0]
    resnet = isobit.prepare(DigitsResNet(), torch.randn(2, 1, 8, 8), target="tensorrt", method="lsq", bits=4)
    with pytest.raises(UnknownNameError, match="unknown layer in feature_layers 'blok2': did you mean 'block2'"):
        distil(resnet, DigitsResNet(), "blok2")
    with pytest.raises(UnknownNameError, match="unknown layer of the teacher 'block1'"):
        distil(resnet, teacher)
    with pytest.raises(SettingError, match="0 trains folded with its batch norm: name 1 in feature_layers"):
        distil(prepared(bn_fold=4), teacher, "0")
    with pytest.raises(SettingError, match=r"computes no 1 of its own \(its batch norm was merged\)"):
        distil(prepared(bn_fold=0), teacher, "1")
    pair = isobit.prepare(Two(), x, target="academic", method="lsq", bits=4)
    with pytest.raises(SettingError, match="pair has 2 outputs that others read"):
        distil(pair, Two(), "pair")
    with pytest.raises(SettingError, match="the output of pair is no tensor"):
        distil(Two(), Two(), "pair").student(x)
    wide = nn.Sequential(*list(network())[:3], nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))
    both = distil(network(), wide, "3")
    with pytest.raises(
        SettingError, match=r"output of 3 has the shape \(16, 4, 2, 2\) in the student and \(16, 8, 2, 2"
    ):
        both.loss((x,), *both.student(x), None)
    with pytest.raises(SettingError, match="compile with feature_distillation is for captured networks"):
        Distillation(network(), teacher, Training(feature_distillation=1.0, compile=True))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"feature_distillation": -1.0}, "feature_distillation is a weight of at least 0"),
        ({"feature_layers": ("a",)}, "feature_layers are named, and feature_distillation is 0"),
        ({"labels": False, "label_smoothing": 0.1}, "label_smoothing is set, and labels is false"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Training(**settings)


@needs_lightning
def test_a_teacher_is_needed_and_used_or_refused(tmp_path: Path) -> None:
    settings = Training(epochs=6, distillation=1.0, temperature=2.0, learning_rate=0.05)
    for lacking in (settings, Training(feature_distillation=1.0), Training(labels=False)):
        with pytest.raises(SettingError, match="distillation needs a teacher"):
            train(network(), Blobs(), evaluation(), lacking, folder=tmp_path)
    with pytest.raises(SettingError, match="nothing is learned from the teacher"):
        train(network(), Blobs(), evaluation(), Training(), folder=tmp_path, teacher=network())
    teacher = network()
    train(teacher, Blobs(), evaluation(), Training(epochs=3, learning_rate=0.05), folder=tmp_path / "teacher")
    before = copy.deepcopy(teacher.state_dict())
    record = train(network(), Blobs(), evaluation(), settings, folder=tmp_path / "student", teacher=teacher)
    assert record.last is not None and record.last.accuracy > 80
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


@needs_lightning
def test_without_labels_a_student_comes_closer_to_its_teacher(tmp_path: Path) -> None:
    teacher = network()
    train(teacher, Blobs(), evaluation(), Training(epochs=3, learning_rate=0.05), folder=tmp_path / "teacher")
    with pytest.raises(CalibrationError, match=r"training data has no labels: give .*, and set labels to false"):
        train(network(), Unlabelled(), evaluation(), Training(epochs=1), folder=tmp_path / "refused")
    x = evaluation()[0][0]
    settings = Training(epochs=4, labels=False, learning_rate=0.01, feature_distillation=0.1)
    student = prepared(bn_fold=0, net=teacher, bits=2)
    errors = [float(output_error(student.eval()(x), teacher(x)).detach())]
    record = train(student, Unlabelled(), evaluation(), settings, folder=tmp_path / "student", teacher=teacher)
    errors.append(float(output_error(student(x), teacher(x)).detach()))
    assert errors[1] < errors[0] / 4
    assert record.last is not None and record.last.accuracy > 80
    assert record.epochs[-1].loss < record.epochs[0].loss / 2


@needs_lightning
@pytest.mark.parametrize("settings", [{"labels": False}, {"distillation": 0.5}])
def test_an_interrupted_run_resumes_to_the_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    teacher = network()
    train(teacher, Blobs(), evaluation(), Training(epochs=1, learning_rate=0.05), folder=tmp_path / "teacher")
    chosen = Training(**{"epochs": 3, "learning_rate": 0.01, "feature_distillation": 1.0, "ema_decay": 0.5, **settings})
    whole, resumed = prepared(4, net=teacher), prepared(4, net=teacher)
    want = train(whole, Blobs(), evaluation(), chosen, folder=tmp_path / "whole", teacher=teacher)
    with pytest.raises(RuntimeError, match="killed"):
        broken = prepared(4, net=teacher)
        train(broken, Blobs(dies_in=2), evaluation(), chosen, folder=tmp_path / "broken", teacher=teacher)
    got = train(resumed, Blobs(), evaluation(), chosen, folder=tmp_path / "broken", teacher=teacher)
    assert got.epochs == want.epochs
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
def test_a_compiled_step_is_the_eager_one_but_for_rounding() -> None:
    teacher, (x, y) = network(), evaluation()[0]
    results = []
    for compiled in (False, True):
        model = prepared(4).train()
        with torch.no_grad():
            teacher[3].weight.fill_(0.1)
        settings = Training(feature_distillation=1.0, distillation=0.5, compile=compiled)
        both = Distillation(model, teacher, settings)
        logits, maps = both.student(x)
        loss = both.loss((x,), logits, maps, F.cross_entropy(logits, y))
        loss.backward()
        results.append([loss.detach(), maps[0].detach(), *(p.grad for p in model.parameters())])
    for eager, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, eager, rtol=1e-3, atol=1e-6)

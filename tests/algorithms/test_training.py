"""Training: it learns, it resumes to the bit, it stops where nothing is learned, and its parts are their formulas."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import isobit
from algorithms.blobs import Blobs, evaluation, network, prepared
from isobit.algorithms.batch_norm import batch_norms
from isobit.algorithms.calibration import finish
from isobit.core.checkpoint import load_checkpoint
from isobit.core.errors import CalibrationError, SettingError

pytest.importorskip("lightning", reason="Lightning is not installed")

from isobit.algorithms.optimization import learning_rate_factor, parameter_groups
from isobit.algorithms.training import Training, train
from isobit.algorithms.training_task import as_deployed


def test_it_learns_and_keeps_a_record(tmp_path: Path) -> None:
    model = network()
    record = train(model, Blobs(), evaluation(), Training(epochs=3, learning_rate=0.05), folder=tmp_path)
    assert not record.not_converged
    assert [e.number for e in record.epochs] == [1, 2, 3]
    assert record.last is not None and record.last.accuracy > 80
    assert record.epochs[-1].loss < record.epochs[0].loss
    right = sum(int((model.eval()(x).argmax(1) == y).sum()) for x, y in evaluation())
    assert right == record.last.right
    assert {p.name for p in tmp_path.iterdir()} == {"last.safetensors", "best.safetensors", "metrics.csv"}
    assert record.best is not None
    for name, epoch in (("last", record.last), ("best", record.best)):
        assert load_checkpoint(tmp_path / f"{name}.safetensors")["isobit"]["curve"][-1]["number"] == epoch.number


@pytest.mark.parametrize("bn_fold", [-1, 0, 1, 2, 3, 4])
def test_an_interrupted_run_ends_with_the_same_integers(bn_fold: int, tmp_path: Path) -> None:
    settings = Training(epochs=4, learning_rate=0.02, clip_norm=1.0, warmup_epochs=0.5)
    whole = prepared(bn_fold)
    want = train(whole, Blobs(), evaluation(), settings, folder=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        train(prepared(bn_fold), Blobs(dies_in=2), evaluation(), settings, folder=tmp_path / "broken")
    torch.manual_seed(123)  # a fresh process draws other numbers
    resumed = prepared(bn_fold)
    got = train(resumed, Blobs(), evaluation(), settings, folder=tmp_path / "broken")
    assert got.epochs == want.epochs
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())
    hashes = []
    for model in (whole, resumed):
        finish(model)
        hashes.append(isobit.export(model, tmp_path / "net.onnx").integers_sha256)
    assert hashes[0] == hashes[1]


def test_the_same_run_again_changes_nothing(tmp_path: Path) -> None:
    settings = Training(epochs=2, learning_rate=0.02)
    first = prepared()
    want = train(first, Blobs(), evaluation(), settings, folder=tmp_path)
    again = prepared()
    got = train(again, Blobs(), evaluation(), settings, folder=tmp_path)
    assert got.epochs == want.epochs
    assert all(torch.equal(v, first.state_dict()[k]) for k, v in again.state_dict().items())


def test_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    train(network(), Blobs(), evaluation(), Training(epochs=1), folder=tmp_path)
    with pytest.raises(SettingError, match=r"holds a run with learning_rate = 0\.01, this one has 0\.02"):
        train(network(), Blobs(), evaluation(), Training(epochs=1, learning_rate=0.02), folder=tmp_path)


def test_a_run_that_diverges_is_stopped_and_says_why(tmp_path: Path) -> None:
    record = train(network(), Blobs(), evaluation(), Training(epochs=5, learning_rate=1e6), folder=tmp_path)
    assert "loss" in record.not_converged
    assert len(record.epochs) < 5


def test_a_run_that_learns_nothing_is_stopped(tmp_path: Path) -> None:
    class Noise(Blobs):
        def epoch(self, number: int, *, rank: int = 0, ranks: int = 1) -> Iterable[tuple[Tensor, Tensor]]:
            for x, y in super().epoch(number):
                yield torch.zeros_like(x), y

    settings = Training(epochs=6, learning_rate=0.5)
    record = train(network(), Noise(), evaluation(), settings, folder=tmp_path)
    assert "is not below that of guessing, 0.693" in record.not_converged
    again = train(network(), Blobs(), evaluation(), settings, folder=tmp_path)
    assert (again.not_converged, again.epochs) == (record.not_converged, record.epochs)


def test_an_uncalibrated_model_is_refused(tmp_path: Path) -> None:
    x = next(iter(Blobs().epoch(0)))[0]
    model = isobit.prepare(network(), x, target="tensorrt")
    with pytest.raises(CalibrationError, match="has no range yet"):
        train(model, Blobs(), evaluation(), Training(epochs=1), folder=tmp_path)


def test_learning_rates() -> None:
    def factor(step: int, schedule: str = "cosine") -> float:
        return learning_rate_factor(step, steps=100, warmup=10, schedule=schedule)

    assert [factor(s) for s in (0, 4, 9)] == pytest.approx([1 / 11, 5 / 11, 10 / 11])
    assert factor(10) == 1.0
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(0.0)
    assert factor(70, "constant") == 1.0
    assert factor(55, "poly") == pytest.approx(0.25)
    ends = {"steps": 100, "warmup": 10, "first": 0.1, "last": 0.01}
    assert learning_rate_factor(0, schedule="poly", **ends) == pytest.approx(0.1 + 0.9 / 11)
    assert learning_rate_factor(55, schedule="cosine", **ends) == pytest.approx(0.505)
    assert learning_rate_factor(100, schedule="poly", **ends) == pytest.approx(0.01)


def test_quantizers_have_groups_of_their_own() -> None:
    model = prepared()
    settings = Training(learning_rate=0.1, weight_decay=1e-3, quantizer_learning_rate=0.1)
    weights, scales = parameter_groups(model, settings)
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 1e-3)
    assert scales["lr"] == pytest.approx(0.01)
    assert scales["weight_decay"] == 0.0
    assert len(scales["params"]) == sum(n.endswith("quantizer.scale") for n, _ in model.named_parameters())
    assert len(weights["params"]) + len(scales["params"]) == len(list(model.parameters()))


def test_batch_norms_decay_by_themselves() -> None:
    model = prepared(bn_fold=4)
    names = {id(p): name for name, p in model.named_parameters()}
    weights, _, norms = parameter_groups(model, Training(weight_decay=1e-3, norm_weight_decay=1e-6))
    assert (norms["lr"], norms["weight_decay"], weights["weight_decay"]) == (0.01, 1e-6, 1e-3)
    want = {f"{name}.{which}" for name, norm in batch_norms(model).items() for which in ("weight", "bias")}
    assert want and {names[id(p)] for p in norms["params"]} == want
    assert not want & {names[id(p)] for p in weights["params"]}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"optimizer": "adamm"}, "optimizer has to be sgd or adamw, got 'adamm'"),
        ({"epochs": 0}, "epochs has to be at least 1"),
        ({"learning_rate": math.nan}, "learning_rate has to be above 0"),
        ({"warmup_epochs": 10.0}, "warmup_epochs has to be from 0 to below epochs"),
        ({"ema_decay": 1.0}, "ema_decay has to lie between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Training(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["slb", "inq", "ir_net", "dsq", "pact"])
def test_methods_with_schedules_and_penalties_resume_to_the_bit(method: str, tmp_path: Path) -> None:
    def fresh() -> nn.Module:
        x = next(iter(Blobs().epoch(0)))[0]
        bits = 1 if method == "ir_net" else 4
        model = isobit.prepare(
            network(), x, target="tensorrt", weight_bits=bits, activation_bits=4, method=method, bn_fold=0
        )
        isobit.calibrate(model, [x])
        return model

    settings = Training(epochs=4, learning_rate=0.02)
    whole, resumed = fresh(), fresh()
    want = train(whole, Blobs(), evaluation(), settings, folder=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        train(fresh(), Blobs(dies_in=3), evaluation(), settings, folder=tmp_path / "broken")
    got = train(resumed, Blobs(), evaluation(), settings, folder=tmp_path / "broken")
    assert got.epochs == want.epochs
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())


def test_statistics_are_taken_anew_where_training_saw_other_weights(tmp_path: Path) -> None:
    x = next(iter(Blobs().epoch(0)))[0]
    right = []
    for batches in (0, 6):
        model = isobit.prepare(
            network(), x, target="academic", weight_bits=2, activation_bits=8, weight_quantizer="slb", bn_fold=-1
        )
        isobit.calibrate(model, [x])
        settings = Training(epochs=1, learning_rate=0.05, bn_recalibration=batches)
        train(model, Blobs(), evaluation(), settings, folder=tmp_path / str(batches))
        norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
        seen: list[Tensor] = []
        hook = norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            for x, _ in Blobs().epoch(0):
                model.eval()(x)
        hook.remove()
        mean = torch.stack([s.mean((0, 2, 3)) for s in seen]).mean(0)
        right.append(float((norm.running_mean - mean).abs().max() / mean.abs().max()))
    assert right[1] < 1e-5 < right[0]


@pytest.mark.parametrize("settings", [{"optimizer": "adamw", "learning_rate": 0.005}, {"ema_decay": 0.8}])
def test_other_optimizers_and_averages_resume_to_the_bit(settings: dict[str, object], tmp_path: Path) -> None:
    chosen = Training(**{"epochs": 3, "learning_rate": 0.05, **settings})  # type: ignore[arg-type]
    whole, resumed = prepared(), prepared()
    want = train(whole, Blobs(), evaluation(), chosen, folder=tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        train(prepared(), Blobs(dies_in=2), evaluation(), chosen, folder=tmp_path / "broken")
    got = train(resumed, Blobs(), evaluation(), chosen, folder=tmp_path / "broken")
    assert got.epochs == want.epochs
    assert want.last is not None and want.last.accuracy > 70
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in resumed.state_dict().items())


def test_the_average_is_that_of_the_weights_of_each_step(tmp_path: Path) -> None:
    plain, averaged = network(), network()
    seen: list[Tensor] = []

    hook = plain.register_forward_pre_hook(
        lambda m, _: seen.append(m[0].weight.detach().clone()) if m.training else None
    )
    train(plain, Blobs(), evaluation(), Training(epochs=1, learning_rate=0.05), folder=tmp_path / "plain")
    hook.remove()
    settings = Training(epochs=1, learning_rate=0.05, ema_decay=0.5)
    train(averaged, Blobs(), evaluation(), settings, folder=tmp_path / "averaged")
    steps = [*seen[1:], plain[0].weight.detach()]
    want = steps[0]
    for weight in steps[1:]:
        want = 0.5 * want + 0.5 * weight
    torch.testing.assert_close(averaged[0].weight.detach(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
def test_a_compiled_run_is_the_eager_one_but_for_rounding(tmp_path: Path) -> None:
    plain, compiled = prepared(), prepared()
    settings = Training(epochs=2, learning_rate=0.05)
    eager = train(plain, Blobs(), evaluation(), settings, folder=tmp_path / "plain")
    record = train(compiled, Blobs(), evaluation(), replace(settings, compile=True), folder=tmp_path / "compiled")
    assert [e.loss for e in record.epochs] == pytest.approx([e.loss for e in eager.epochs], abs=1e-5)
    found = [load_checkpoint(tmp_path / name / "last.safetensors")["state_dict"] for name in ("plain", "compiled")]
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][key], found[1][key], atol=1e-4) for key in found[0])


@pytest.mark.parametrize("bn_fold", [-1, 0, 4])
def test_what_an_epoch_counts_is_what_is_deployed(bn_fold: int, tmp_path: Path) -> None:
    x = torch.randn(64, *next(iter(Blobs().epoch(0)))[0].shape[1:], generator=torch.Generator().manual_seed(5))
    labels = torch.arange(64) % 2
    model = isobit.prepare(network(), x, target="onnxruntime-x86", bits=2, method="lsq", bn_fold=bn_fold)
    isobit.calibrate(model, [x])
    record = train(model, Blobs(), [(x, labels)], Training(epochs=1, learning_rate=0.05), folder=tmp_path)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    copied = as_deployed(model)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    before = model(x)
    finish(model)
    assert torch.equal(copied(x), model(x))
    assert (before - model(x)).abs().max() > 1e-3  # biases of 2 bits: a coarse step
    assert record.last is not None and record.last.right == int((model(x).argmax(1) == labels).sum())

"""What every quantizer of the table ends as: trained a little, finished, exported, and run on a real engine."""

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import isobit
from algorithms.blobs import Blobs, evaluation
from contracts.test_quantizers import ROLES
from isobit.algorithms.calibration import Observation, calibrate, finish
from isobit.algorithms.post_training import Preparing, prepare
from isobit.core.errors import UnsupportedError
from isobit.core.scheme import Scheme
from isobit.engines import ENGINES
from isobit.graph.convert import convert
from isobit.graph.insert import slots
from isobit.observers import OBSERVERS, ObserverSettings
from isobit.quantizers import QUANTIZERS, QuantizerSettings, Role
from isobit.targets import TARGETS, Profile

WIDTHS = (8, 4, 2, 1)
PROFILE = replace(TARGETS["academic"], edge_bits=None)
"""One scale for each tensor, batch norm trained on its own, every layer at the width in question."""

UNSUPPORTED = {
    ("dynamic", "activation", 4): "input: a file holds dynamic ranges as unsigned asymmetric bytes",
    ("dynamic", "activation", 2): "input: a file holds dynamic ranges as unsigned asymmetric bytes",
    ("dynamic", "activation", 1): "input: a file holds dynamic ranges as unsigned asymmetric bytes",
    ("logarithmic", "activation", 4): "input: the levels of .* go up to 64: use fewer bits",
}
"""What has no form in a file, and what the error says: the place and what to do."""

TAKE_THE_SIGN = {"bi_real", "ir_net"}
"""Activations of these names tell nothing behind a ReLU. On an engine, whose sums have another order, their threshold
at 0 may tell sums of ±w apart that are 0 but for float's last bits: in up to a tenth of the images."""

OTHER_INPUT = {("ewgs", "activation", 1)}
"""These refuse the negative values of the network's input at calibration."""


def profile_of(name: str, role: Role, bits: int) -> Profile:
    profile = PROFILE.with_bits(weight=bits if role == "weight" else 8, activation=bits if role == "activation" else 8)
    if name == "dynamic":  # takes no sign that depends on data
        profile = replace(profile, activation=Scheme(bits=bits, signed=False, symmetric=False))
    return profile


def is_taken(name: str, role: Role, bits: int) -> bool:
    profile = profile_of(name, role, bits)
    try:
        QUANTIZERS[name]().build(profile.weight if role == "weight" else profile.activation, role=role)
    except UnsupportedError:
        return False
    return (name, role, bits) not in OTHER_INPUT


CASES: list[tuple[str, Role, int]] = [
    (name, role, bits) for name in QUANTIZERS for role in ROLES for bits in WIDTHS if is_taken(name, role, bits)
]
EXPORTED = [case for case in CASES if case not in UNSUPPORTED]
NARROWEST = {(name, role): bits for name, role, bits in EXPORTED}


def pairs() -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Each quantizer at its fewest bits, for weights and for activations: two are tested by one export.

    But signs by themselves: of ternary weights and signs, every other sum is a tie.
    """
    weights = [(name, bits) for (name, role), bits in NARROWEST.items() if role == "weight"]
    activations = [(name, bits) for (name, role), bits in NARROWEST.items() if role == "activation"]
    together = [pair for pair in activations if pair[0] not in TAKE_THE_SIGN]
    alone = [(("fixed", 8), pair) for pair in activations if pair[0] in TAKE_THE_SIGN]
    return [*zip_longest(weights, together, fillvalue=("fixed", 8)), *alone]


def network(activation: type[nn.Module]) -> nn.Module:
    """With a batch norm that turns a channel over, to be merged into the scales of a trained weight."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    norm.weight.data[2] = -0.7
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), norm, activation(), nn.Conv2d(6, 8, 3), activation(), nn.Flatten(),
        nn.Linear(32, 2),
    )  # fmt: skip


def observer_of(settings: QuantizerSettings, role: Role) -> ObserverSettings:
    own = getattr(settings, "weight_observer", settings.observer) if role == "weight" else settings.observer
    found: ObserverSettings = OBSERVERS[own]()
    return found


def trained(weight: tuple[str, int], activation: tuple[str, int]) -> fx.GraphModule:
    """Prepared, calibrated, three steps further, finished."""
    of_weights, of_activations = (QUANTIZERS[name]() for name, _ in (weight, activation))
    batches = list(Blobs().epoch(0))[:3]
    profile = replace(
        PROFILE,
        weight=profile_of(weight[0], "weight", weight[1]).weight,
        activation=profile_of(activation[0], "activation", activation[1]).activation,
    )
    settings = Preparing(weight=of_weights, activation=of_activations)
    net = network(nn.Identity if activation[0] in TAKE_THE_SIGN else nn.ReLU)
    model = prepare(net, batches[0][0], profile, settings)
    observation = Observation(
        weight=observer_of(of_weights, "weight"), activation=observer_of(of_activations, "activation")
    )
    calibrate(model, [batches[0][0]], observation)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step, (x, y) in enumerate(batches):
        for slot in slots(model):
            if callable(advance := getattr(slot.quantizer, "advance", None)):
                advance(step / len(batches))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()
    finish(model)
    return model


def trained_case(name: str, role: Role, bits: int) -> fx.GraphModule:
    """One quantizer in one role, with 8 fixed bits in the other."""
    pair = {"weight": ("fixed", 8), "activation": ("fixed", 8), role: (name, bits)}
    return trained(pair["weight"], pair["activation"])


def images() -> Tensor:
    return torch.cat([x for x, _ in evaluation()])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "role", "bits"), EXPORTED)
def test_what_is_deployed_is_the_simulation(name: str, role: Role, bits: int) -> None:
    model, x = trained_case(name, role, bits), images()
    with torch.no_grad():
        expected, found = model(x), convert(model)(x)
    assert share_of_different(found, expected, within=1e-6) == 0
    assert len(expected.unique(dim=0)) > 1


@pytest.mark.parametrize(("name", "role", "bits"), UNSUPPORTED)
def test_what_has_no_form_in_a_file_says_where_and_what_to_do(name: str, role: Role, bits: int) -> None:
    with pytest.raises(UnsupportedError, match=UNSUPPORTED[name, role, bits]):
        convert(trained_case(name, role, bits))


@pytest.mark.parametrize(("weight", "activation"), pairs(), ids=lambda pair: f"{pair[0]}{pair[1]}")
def test_the_engine_computes_the_simulation(
    weight: tuple[str, int], activation: tuple[str, int], tmp_path: Path
) -> None:
    engine = ENGINES["onnxruntime"]()
    if engine.missing():
        pytest.skip(engine.missing())
    model, x = trained(weight, activation), images()
    model.meta["example"] = (x[:2],)
    isobit.export(model, tmp_path / "net.onnx")
    (found,) = engine.load(tmp_path / "net.onnx").run([x.numpy()])
    with torch.no_grad():
        expected = model(x)
    allowed = 0.1 if activation[0] in TAKE_THE_SIGN else 0.02  # a sum in another order may round elsewhere
    assert share_of_different(torch.from_numpy(found), expected, within=1e-5) <= allowed


def share_of_different(found: Tensor, expected: Tensor, *, within: float) -> float:
    """The share of images whose output is farther from the simulation's than that part of the largest."""
    far = (found - expected).abs().amax(1) > within * float(expected.abs().max())
    return float(far.float().mean())

"""Saturation avoided: proved on the file's integers, and shown on a real engine with the instructions before VNNI."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import isobit
from isobit.algorithms.saturation import check_settled
from isobit.analysis.saturation import saturation
from isobit.core.arithmetic import FLOAT32, FLOAT32_PAIRS, OPENVINO
from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.litert_file import missing
from isobit.engines import OnnxRuntime, OpenVino
from isobit.engines.instruction_set import saturates_pairs
from isobit.graph.convert import convert
from isobit.graph.deployed import IntegerWeight
from isobit.graph.deployed_activations import ActivationQuantizer
from isobit.integer import overflow_risks
from zoo import small_networks

INPUTS = [torch.rand(32, 8, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.7]


def saturating_network() -> nn.Module:
    """A convolution of equal weights, whose every pair saturates; one channel in which large weights are no neighbours;
    a depthwise one of equal weights, which cannot saturate; and a linear layer of equal weights."""
    net = nn.Sequential(
        nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 4)
    )
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight.fill_(0.05)
                layer.weight[1::3] = -0.05
                layer.bias.fill_(1.0)
        net[0].weight[3] = 0
        net[0].weight[3, ::2] = 0.05
    return net.eval()


def quantized(net: nn.Module, target: str = "onnxruntime-x86", **settings: Any) -> fx.GraphModule:
    return isobit.quantize(net, INPUTS, target=target, **settings)


def integers(model: fx.GraphModule) -> list[Tensor]:
    return [m.q for m in convert(model).modules() if hasattr(m, "q") and isinstance(m.q, Tensor)]


def test_a_network_built_to_saturate_is_found_and_repaired() -> None:
    plain, safe = (quantized(saturating_network(), avoid_saturation=a, reconstruction="none") for a in (False, True))
    found = {r.layer: r for r in saturation(plain)}
    assert list(found) == ["0", "5"]
    assert 3 not in found["0"].channels and len(found["0"].channels) == 15 and len(found["5"].channels) == 4
    assert found["0"].worst == 2 * 127 * 255 and (found["0"].weights, found["0"].levels) == ((127, 127), (255, 255))
    assert saturation(safe) == ()
    before, after = integers(plain), integers(safe)
    assert torch.equal(before[0][3], after[0][3]) and torch.equal(before[1], after[1])
    assert after[0].abs().amax((1, 2, 3)).tolist() == [127 if c == 3 else 63 for c in range(16)]
    assert [(r.layer, len(r.channels), r.outputs) for r in safe.meta["saturation"]] == [("0", 15, 16), ("5", 4, 4)]
    assert any("avoid_saturation changed 19 of 20 channels of 2 layers" in note for note in safe.meta["notes"])


@pytest.mark.parametrize("target", ["onnxruntime-x86", "openvino-cpu", "snpe", "tvm", "fbgemm", "tensorrt"])
@pytest.mark.parametrize("settings", [{}, {"reconstruction": "none"}], ids=["gptq", "nearest"])
def test_the_proof_holds_for_the_file(target: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Random weights, whatever the target does with scales: proved on the ONNX file, by the other program."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Conv2d(12, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5)
    ).eval()
    inputs = [torch.randn(32, 8, 12, 12, generator=torch.Generator().manual_seed(1))]
    paths, older = [], OPENVINO.before_vnni if target == "openvino-cpu" else FLOAT32_PAIRS
    for avoid in (False, True):
        model = isobit.quantize(net, inputs, target=target, avoid_saturation=avoid, **settings)
        paths.append(isobit.export(model, tmp_path / f"{avoid}.onnx").path)
        assert [r.layer for r in saturation(model)] == [r.layer for r in overflow_risks(paths[-1], older)]
    assert overflow_risks(paths[0], older) and not overflow_risks(paths[1], older)


@pytest.mark.parametrize("reconstruction", ["adaround", "qdrop"])
def test_with_learned_roundings(reconstruction: str) -> None:
    choice = {"name": reconstruction, "iterations": 20}
    model = quantized(saturating_network(), avoid_saturation=True, reconstruction=choice)
    assert saturation(model) == () and model.meta["saturation"]


def test_the_smallest_change_that_proves_safe() -> None:
    """One pair that is a little too much costs its channel a little, and no other channel anything."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        net[0].weight.uniform_(-0.02, 0.02)
        net[0].weight[:, 0, 0, 0] = 0.127  # the step is 0.001
        net[0].weight[:, 1, 0, 0] = torch.tensor([-0.1, 0.0, 0.0019, 0.02])
    plain, safe = (quantized(net, avoid_saturation=a, reconstruction="none") for a in (False, True))
    assert saturation(plain)[0].channels == (2, 3)
    (record,) = safe.meta["saturation"]
    assert record.channels == (2, 3) and record.factor < 1.17  # 147 levels, 128 are allowed
    before, after = integers(plain)[0], integers(safe)[0]
    assert torch.equal(before[:2], after[:2])


def filling_network() -> nn.Module:
    """A channel of tiny weights and a bias of 1: the bias alone needs 38 bits of its step."""
    net = nn.Sequential(nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        net[0].weight[1] *= 1e-9
        net[0].bias.fill_(1.0)
    return net


@pytest.mark.parametrize("avoid", [False, True])
@pytest.mark.parametrize("target", ["onnxruntime-x86", "snpe", "tvm", "tensorrt"])
def test_a_bias_that_fills_the_accumulator(avoid: bool, target: str, tmp_path: Path) -> None:
    """That channel alone gets a larger step, asked for or not; ONNX Runtime computes what the simulation does."""
    net = filling_network()
    model = quantized(net, target, avoid_saturation=avoid)
    assert not [r for r in saturation(model) if r.kind == "accumulator" or avoid]
    per_channel = target not in ("snpe", "tvm")  # one step for all: the channel's own does not count
    said = [note for note in model.meta["notes"] if "channels got larger steps, since their sums" in note]
    assert len(said) == (per_channel and not avoid)
    assert not said or said[0].startswith("0: 1 of 4 channels")
    if avoid and per_channel:
        assert [r.filled for r in model.meta["saturation"]] == [1] and model.meta["saturation"][0].factor < 2.1
    artifact = isobit.export(model, tmp_path / "net.onnx", format="onnx")
    assert artifact.notes == ()
    expected = net(INPUTS[0])[:, 1]
    assert (convert(model)(INPUTS[0])[:, 1] - expected).abs().max() < 0.02
    (y,) = OnnxRuntime().load(artifact.path).run([INPUTS[0].numpy()])
    assert abs(torch.from_numpy(y)[:, 1] - expected).max() < 0.02


def test_other_channels_stay_as_they_are() -> None:
    """The step of no other channel changes where one is filled, and nothing where none is."""
    net = filling_network()
    healthy = copy.deepcopy(net)
    with torch.no_grad():
        healthy[0].weight[1] *= 1e9
    one, other = (quantized(n, reconstruction="none") for n in (net, healthy))
    scales = [next(m.scale for m in convert(x).modules() if isinstance(m, IntegerWeight)) for x in (one, other)]
    assert torch.equal(scales[0][[0, 2, 3]], scales[1][[0, 2, 3]])
    assert not any("larger steps" in note for note in other.meta["notes"])
    step = next(m.scale for m in convert(one).modules() if isinstance(m, ActivationQuantizer))
    exact = 1.0 / float(scales[0][1] * step)
    assert 0.99 * 2**31 < exact < 2**31  # as small as they can be


@pytest.mark.parametrize("format", ["onnx", "onnx-qoperator", "litert", "openvino", "aimet"])
def test_a_bias_that_is_clamped_is_said(format: str, tmp_path: Path) -> None:
    """By a quantizer whose steps are its own."""
    if format == "litert" and missing():
        pytest.skip(missing())
    model = quantized(filling_network(), "openvino-cpu" if format == "openvino" else "snpe", method="lsq", bits=8)
    with torch.no_grad():
        model.get_submodule("0").bias.fill_(1e9)
    notes = isobit.export(model, tmp_path / "net.file", format=format).notes
    clamped = [note for note in notes if "do not hold the bias" in note]
    assert clamped == [
        "0: 32 bits of s_x · s_w do not hold the bias of 4 channels (0, 1, 2, 3), which was clamped. Quantize with the "
        "quantizer `fixed`, which takes larger steps there"
    ]


def test_sixteen_bits_have_no_such_registers() -> None:
    """Their sums have 64 bits: nothing is said, and nothing changed."""
    net, inputs = small_networks()["residual"]
    plain, safe = (isobit.quantize(net, [(inputs,)], target="ceva", bits=16, avoid_saturation=a) for a in (False, True))
    assert saturation(plain) == saturation(safe) == ()
    for a, b in zip(integers(plain), integers(safe), strict=True):
        assert torch.equal(a, b)


def test_what_is_not_proved_is_refused() -> None:
    """As for a quantizer that does not keep the weights it is given."""
    with pytest.raises(UnsupportedError, match=r"0: 15 of 16 channels.*Use `fixed`"):
        check_settled(quantized(saturating_network(), reconstruction="none"))


@pytest.mark.parametrize("method", ["lsq", "dorefa", "pact"])
def test_quantizers_with_steps_of_their_own(method: str) -> None:
    model = quantized(saturating_network(), avoid_saturation=True, method=method, bits=8)
    assert saturation(model) == ()


def test_training_refuses_it() -> None:
    with pytest.raises(SettingError, match=r"isobit\.quantize"):
        isobit.prepare(saturating_network(), INPUTS[0], target="onnxruntime-x86", avoid_saturation=True)


VERIFY = """
import json, sys
import torch, isobit
from isobit.core.records import to_json
data = [torch.load(sys.argv[1])]
print(json.dumps([to_json(isobit.verify(path, None, data, engine="openvino")) for path in sys.argv[2:]]))
"""


@pytest.mark.skipif(bool(OpenVino().missing()), reason=OpenVino().missing() or "installed")
@pytest.mark.skipif(
    "instructions unknown" in OpenVino().instruction_set() or "NEON" in OpenVino().instruction_set(),
    reason="oneDNN for x86 is asked",
)
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE"])
def test_openvino_before_vnni(instructions: str, tmp_path: Path) -> None:
    """The published failure, 100 % of the outputs differ, and its cure: none does."""
    if instructions == "AVX512_CORE" and "AVX512" not in OpenVino().instruction_set():
        pytest.skip("this processor has no AVX-512")
    net = saturating_network()
    torch.save(INPUTS[0], tmp_path / "x.pt")
    paths = []
    for avoid in (False, True):
        model = quantized(net, "openvino-cpu", avoid_saturation=avoid)
        paths.append(str(isobit.export(model, tmp_path / f"{avoid}.onnx").path))
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": instructions}
    done = subprocess.run(
        [sys.executable, "-c", VERIFY, str(tmp_path / "x.pt"), *paths], env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    plain, safe = json.loads(done.stdout.splitlines()[-1])
    assert plain["instruction_set"] == safe["instruction_set"] == instructions.removesuffix("_CORE")
    agreement = plain["comparisons"][0]
    assert plain["verdict"] == "broken" and agreement["equal"] == 0 and agreement["largest"] > 20
    assert "pairs of products can saturate in 15 of 16 channels" in plain["cause"]
    assert [r["kind"] for r in plain["risks"]] == ["pair", "pair"] and plain["older_risks"] == []
    agreement = safe["comparisons"][0]
    assert safe["verdict"] == "exact" and agreement["equal"] == agreement["total"] and safe["risks"] == []


@pytest.mark.parametrize("engine", [OnnxRuntime, OpenVino], ids=["onnxruntime", "openvino"])
def test_no_alarm_with_vnni(engine: Callable[[], Any], tmp_path: Path) -> None:
    """The network that saturates elsewhere is exact here, and the certificate says both."""
    kind = engine()
    if kind.missing() or saturates_pairs(kind.instruction_set()):
        pytest.skip(kind.missing() or "pairs of products saturate on this processor")
    target = "openvino-cpu" if kind.name == "openvino" else "onnxruntime-x86"
    path = isobit.export(quantized(saturating_network(), target), tmp_path / "net.onnx").path
    certificate = isobit.verify(path, None, INPUTS, engine=kind.name)
    assert certificate.verdict == "exact" and certificate.risks == overflow_risks(path, FLOAT32) == ()
    assert [r.layer for r in certificate.older_risks] == [r.layer for r in overflow_risks(path, FLOAT32_PAIRS)]
    assert "x86 before VNNI: pairs of products can saturate in 19 of 20 channels of 2 layers" in str(certificate)
    assert "avoid_saturation" in str(certificate)

"""The commands do what the Python functions do, print JSON alone where it is wanted, and say the same each time."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import isobit
from cli.bad_input import invoke
from isobit.cli import verifying
from isobit.cli.data import Reading, load_data
from isobit.cli.loading import load_model
from isobit.cli.progress import Watch
from isobit.core.litert_file import missing
from isobit.core.records import Verdict
from isobit.integer.files import read_metadata
from isobit.targets import TARGETS

Q = "quantize nets.py:net -d data.py:good -t onnxruntime-x86 -o out.onnx"


def test_help_is_quick_and_complete() -> None:
    """No command's import may pull torch in: it takes seconds."""
    script = "import sys; from isobit.cli.app import app; print('torch' in sys.modules, 'onnx' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).split() == ["False", "False"]
    for command in ("quantize", "verify", "analyze", "latency", "train", "bench", "targets", "engines", "demo"):
        text = invoke(f"{command} --help").stdout
        assert "Examples:" in text
        assert f"  isobit {command}" in text
        assert all(len(line) <= 80 for line in text.splitlines())
    assert "quantize" in invoke("").stdout
    assert invoke("").exit_code == 0


def test_version() -> None:
    assert re.fullmatch(r"isobit \d+\.\d+\.\d+\n", invoke("--version").stdout)


def test_importing_the_parts_leaves_the_public_functions() -> None:
    """`isobit.verify` is a function, whatever else of the package was imported before."""
    script = "import isobit.verify, isobit.export.tidy, isobit.cli.verify; print(isobit.verify, isobit.export)"
    text = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert text.startswith("<function verify") and "<function export" in text
    assert set(isobit.__all__) <= set(dir(isobit))
    with pytest.raises(AttributeError, match="qantize"):
        isobit.qantize  # noqa: B018


def test_quantize_writes_what_the_function_writes(here: Path) -> None:
    result = invoke(f"{Q} --json --keep-float linear --layer-bits conv2=4 --seed 3")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    net = load_model("nets.py:net")
    data = list(load_data("data.py:good", Reading()))
    model = isobit.quantize(
        net, data, target="onnxruntime-x86", keep_float=("linear",), layer_bits={"conv2": 4}, seed=3
    )
    artifact = isobit.export(model, here / "again.onnx")
    assert found["integers_sha256"] == artifact.integers_sha256
    assert (here / "out.onnx").read_bytes() == (here / "again.onnx").read_bytes()
    assert found["recipe"]["keep_float"] == ["linear"]
    assert json.loads(read_metadata(here / "out.onnx")["isobit.recipe"]) == found["recipe"]
    assert found["certificate"]["verdict"] in ("exact", "bounded")
    assert found["file_bytes"] == (here / "out.onnx").stat().st_size
    assert {op["name"] for op in found["float_ops"]} >= {"linear", "norm"}


@pytest.mark.skipif(bool(missing()), reason=missing() or "LiteRT is there")
@pytest.mark.parametrize("output", ["out.tflite", "out.onnx"])
def test_the_suffix_says_the_format_and_the_targets_engine_verifies(output: str, here: Path) -> None:
    """LiteRT runs no ONNX file: it verifies its own form of the same integers."""
    result = invoke(f"quantize nets.py:net -d data.py:good -t litert -o {output} --json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["certificate"]["engine"], found["certificate"]["verdict"]) == ("litert", "exact")
    assert found["written"] == [output]
    assert read_metadata(here / output)["isobit.integers_sha256"] == found["integers_sha256"]  # by the suffix's reader


def test_quantize_counts_as_numpy_does(here: Path) -> None:
    """Accuracies against the float network and ONNX Runtime by hand."""
    found = json.loads(invoke(f"{Q} --eval-data good.npz --json").stdout)
    with np.load(here / "good.npz") as file:
        arrays = dict(file)
    session = onnxruntime.InferenceSession(here / "out.onnx", providers=["CPUExecutionProvider"])
    y = session.run(None, {session.get_inputs()[0].name: arrays["x"]})[0]
    float_y = load_model("nets.py:net")(torch.from_numpy(arrays["x"])).detach().numpy()
    right = {a["execution"]: a["right"] for a in found["accuracy"]}
    assert right["onnxruntime"] == int((y.argmax(1) == arrays["y"]).sum())
    assert right["float"] == int((float_y.argmax(1) == arrays["y"]).sum())
    assert {a["total"] for a in found["accuracy"]} == {32}


def test_the_table_says_what_the_json_says(here: Path) -> None:
    found = json.loads(invoke(f"{Q} --json --report run.html").stdout)
    text = invoke(Q).stdout
    assert found["certificate"]["verdict"].upper() in text
    assert found["certificate"]["engine_version"] in text
    assert found["written"] == ["out.onnx", "run.html"]
    for accuracy in found["accuracy"]:
        assert f"{accuracy['right']}/{accuracy['total']}" in text
    page = (here / "run.html").read_text()
    assert "isobit quantize nets.py:net" in page


def test_a_vendors_format_is_written_and_its_integers_verified(here: Path) -> None:
    """The certificate is of the ONNX form of the same integers; what is kept is the float network and its encodings."""
    result = invoke("quantize nets.py:net -d data.py:good -t snpe -o phone.onnx --format aimet --json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["written"] == ["phone.onnx", "phone.encodings"]
    assert found["certificate"]["verdict"] in ("exact", "bounded")
    assert found["file_bytes"] == sum((here / name).stat().st_size for name in found["written"])
    assert read_metadata(here / "phone.onnx")["isobit.integers_sha256"] == found["integers_sha256"]
    kinds = {node.op_type for node in onnx.load(here / "phone.onnx").graph.node}
    assert "QuantizeLinear" not in kinds
    alone = invoke("quantize nets.py:net -d data.py:good -t snpe --format aimet")
    assert alone.exit_code == 2
    assert "give both" in alone.stderr


def test_without_output_nothing_is_kept(here: Path) -> None:
    before = set(here.iterdir())
    text = invoke("quantize nets.py:stream -d data.py:stream -t tensorrt").stderr
    assert "'stream'" in text
    result = invoke("quantize nets.py:net -d data.py:stream -t tensorrt --no-verify")
    assert "give -o FILE" in result.stdout
    assert "not verified: not asked for" in result.stdout
    assert {p.name for p in set(here.iterdir()) - before} <= {"__pycache__"}


def test_what_the_users_code_prints_stays_off_stdout(here: Path) -> None:
    (here / "loud.py").write_text(
        "from nets import *\nprint('loading')\n\ndef loud():\n    print('hi')\n    return net()\n"
    )
    result = invoke("quantize loud.py:loud -d data.py:good -t fbgemm --no-verify --json")
    assert json.loads(result.stdout)["model"] == "loud.py:loud"
    assert "loading\nhi\n" in result.stderr


def test_a_recipe_and_options_over_it(here: Path) -> None:
    found = json.loads(invoke("quantize nets.py:net -d data.py:good -r good.toml --no-verify --json").stdout)
    assert found["recipe"]["weight_bits"] == 4
    assert found["recipe"]["keep_float"] == ["linear"]
    found = json.loads(invoke("quantize nets.py:net -d data.py:good -r good.toml --bits 8 --no-verify --json").stdout)
    assert found["recipe"]["weight_bits"] == found["recipe"]["activation_bits"] == 8


def test_any_key_of_a_recipe_can_be_set(here: Path) -> None:
    command = "quantize nets.py:net -d data.py:good -t fbgemm --no-verify --json"
    choice = '{name="percentile",percentile=99.0}'
    chosen = f"--set bias_correction=true --set weight_observer=mse --set activation_observer={choice}"
    recipe = json.loads(invoke(f"{command} {chosen}").stdout)["recipe"]
    assert (recipe["bias_correction"], recipe["weight_observer"]) == (True, "mse")
    assert recipe["activation_observer"] == {"name": "percentile", "percentile": 99.0}


def test_saturation_is_named_and_avoided(here: Path) -> None:
    command = "quantize nets.py:net -d data.py:good -t onnxruntime-x86 --no-verify --json"
    assert json.loads(invoke(command).stdout)["saturation"] == []
    found = json.loads(invoke(f"{command} --avoid-saturation").stdout)
    assert found["recipe"]["avoid_saturation"] is True
    assert found["saturation"] and all(r["channels"] for r in found["saturation"])
    assert any(note.startswith("avoid_saturation changed") for note in found["notes"])
    analysis = invoke("analyze nets.py:net -d data.py:good -t onnxruntime-x86 --json").stdout
    assert any(
        "before VNNI" in warning and "--avoid-saturation" in warning for warning in json.loads(analysis)["warnings"]
    )


def test_a_promise_is_kept_or_the_best_is_written_and_the_exit_code_says_so(here: Path) -> None:
    kept = invoke(f"{Q} --eval-data good.npz --json --max-drop 100")
    assert kept.exit_code == 0, kept.stderr
    promise = json.loads(kept.stdout)["promise"]
    assert promise["kept"]
    assert [s["name"] for s in promise["steps"]] == ["as asked"]
    (here / "half.py").write_text(
        "import torch\nfrom nets import net\ndef data():\n    torch.manual_seed(0)\n"
        "    x = 9 * torch.randn(64, 3, 8, 8)\n"
        "    return [(x, net().eval()(x).argmax(1))]\n"
    )
    options = "--eval-data half.py:data --bits 2 --max-drop 0 --max-minutes 0.0001"
    missed = invoke(f"{Q} {options} --json")
    found = json.loads(missed.stdout)
    assert missed.exit_code == 9
    assert not found["promise"]["kept"]
    assert (here / "out.onnx").stat().st_size == found["file_bytes"]
    assert not (here / "out.onnx.unfinished").exists()
    assert "not kept" in invoke(f"{Q} {options}").stdout


def test_faster_says_what_it_measured(here: Path) -> None:
    result = invoke(f"{Q} --faster --json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    undone = [name for kind in found["faster"]["kinds"] if kind["undone"] for name in kind["layers"]]
    assert found["recipe"]["keep_float"] == undone
    assert found["faster"]["float_ms"] > 0


WIDE = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 4))
"""


@pytest.mark.parametrize("target", ["onnxruntime-weights", "onnxruntime-dynamic"])
def test_targets_without_calibrated_ranges(here: Path, target: str) -> None:
    (here / "wide.py").write_text(WIDE)
    groups = "--group-size 64" if target == "onnxruntime-weights" else ""
    command = f"quantize wide.py:net -d data.py:good -t {target} --bits 4 {groups} -o out.onnx --report run.html"
    found = json.loads(invoke(f"{command} --json").stdout)
    assert (found["recipe"]["weight_bits"], found["recipe"].get("activation_bits")) == (4, None)
    assert found["certificate"]["verdict"] in ("exact", "bounded")
    text = " ".join(invoke(command).stdout.split())
    if groups:
        assert found["recipe"]["group_size"] == 64
        assert "W4 in groups of 64, with zero points, activations float" in text
        assert {k["name"] for k in found["certificate"]["kernels"]} >= {"MatMulNBits"}
    else:
        assert "activations u8 asymmetric per-tensor, dynamic" in text
    assert "isobit quantize wide.py:net" in (here / "run.html").read_text()
    both = invoke(f"{command} --activation-bits 4")
    assert (both.exit_code, "give either --bits or --activation-bits" in both.stderr) == (2, True)


def test_verify_with_and_without_the_network(here: Path) -> None:
    alone = json.loads(invoke("verify net.onnx --json").stdout)
    assert [(c["left"], c["right"]) for c in alone["certificate"]["comparisons"]] == [("reference", "onnxruntime")]
    result = invoke("verify net.onnx --model nets.py:net --calibration data.py:good -d good.npz --json")
    both = json.loads(result.stdout)["certificate"]
    assert {c["left"] for c in both["comparisons"]} == {"reference", "simulation"}
    assert both["samples"] == 32
    assert {a["execution"] for a in both["accuracy"]} == {"simulation", "reference", "onnxruntime"}
    assert both["integers_sha256"] == read_metadata(here / "net.onnx")["isobit.integers_sha256"]


def test_a_changed_file_no_longer_equals_the_simulation(here: Path) -> None:
    model = onnx.load(here / "net.onnx")
    bias = next(t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT32)
    values = onnx.numpy_helper.to_array(bias) + 10_000
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, here / "changed.onnx")
    result = invoke("verify changed.onnx --model nets.py:net --calibration data.py:good --json")
    certificate = json.loads(result.stdout)["certificate"]
    against = {(c["left"], c["right"]): c["equal"] / c["total"] for c in certificate["comparisons"]}
    assert against["simulation", "reference"] < 1


@pytest.mark.parametrize("verdict", ["exact", "bounded", "broken"])
def test_the_exit_code_follows_the_verdict(here: Path, monkeypatch: pytest.MonkeyPatch, verdict: Verdict) -> None:
    whole = verifying.run

    def run(job: verifying.Job, watch: Watch) -> verifying.Verified:
        found = whole(job, watch)
        certificate = dataclasses.replace(found.certificate, verdict=verdict, cause="the test wants it")
        return dataclasses.replace(found, certificate=certificate)

    monkeypatch.setattr(verifying, "run", run)
    loose, strict = invoke("verify net.onnx"), invoke("verify net.onnx --require exact")
    assert verdict.upper() in loose.stdout and "the test wants it" in loose.stdout
    assert loose.exit_code == (9 if verdict == "broken" else 0)
    assert strict.exit_code == (0 if verdict == "exact" else 9)


def test_analyze(here: Path) -> None:
    line = "analyze nets.py:net -d data.py:good -t tvm --bits 4"
    record = json.loads(invoke(f"{line} --json --report layers.html").stdout)
    names = [layer["name"] for layer in record["layers"]]
    assert {"conv1", "conv2", "linear"} <= set(names)
    assert sum(layer["sensitivity"] for layer in record["layers"]) == pytest.approx(1)
    text = invoke(line).stdout
    worst = max(record["layers"], key=lambda layer: layer["sensitivity"])
    assert all(name in text for name in names)
    assert re.search(rf"most noise\s+{worst['name']} ", text)
    assert "isobit analyze" in (here / "layers.html").read_text()


def test_targets() -> None:
    text = invoke("targets").stdout
    listed = json.loads(invoke("targets --json").stdout)["targets"]
    assert [t["name"] for t in listed] == list(TARGETS)
    for name, profile in TARGETS.items():
        assert name in text
        details = invoke(f"targets {name}").stdout
        assert "".join(profile.source.split()) in "".join(details.split())
        one = json.loads(invoke(f"targets {name} --json").stdout)
        assert one == {"format": 1, **next(t for t in listed if t["name"] == name)}
        assert one["placement"]["inputs"] == sorted(profile.placement.inputs)


def test_a_fault_of_our_own(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    """No bare traceback even then; --debug and ISOBIT_DEBUG show it."""
    from isobit.cli import quantizing

    def fail(*_: object) -> None:
        raise ZeroDivisionError("nobody thought of this")

    monkeypatch.setattr(quantizing, "run", fail)
    result = invoke(Q)
    assert result.exit_code == 70
    assert result.stderr.startswith("error: isobit has a fault, ZeroDivisionError: nobody thought of this")
    assert "--debug" in result.stderr and "Traceback" not in result.stderr
    assert "Traceback" in invoke(f"{Q} --debug").stderr
    assert "Traceback" in invoke(f"--debug {Q}").stderr
    monkeypatch.setenv("ISOBIT_DEBUG", "1")
    assert "Traceback" in invoke(Q).stderr


def test_interrupted(here: Path) -> None:
    result = invoke("quantize nets.py:net -d data.py:interrupted -t onnxruntime-x86 -o out.onnx")
    assert result.exit_code == 130
    assert result.stderr == "interrupted; files that were not complete have been removed\n"
    assert not (here / "out.onnx").exists()

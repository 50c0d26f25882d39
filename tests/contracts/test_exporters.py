"""What every exporter of the table promises, and the exported graphs of three small networks as text."""

import errno
import functools
import hashlib
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, fx, nn

import isobit
from golden_files import check_golden
from isobit.core.errors import OutputError, SettingError, UnsupportedError
from isobit.engines import ENGINES
from isobit.export import EXPORTERS, READERS, Exporter
from isobit.graph.convert import convert, hash_integers, integers
from isobit.graph.insert import preparation
from isobit.targets import TARGETS
from vendor import PROFILES, quantized
from zoo import small_networks

NETWORKS = tuple(small_networks())
TARGET = "onnxruntime-x86"


@dataclass(frozen=True)
class Exported:
    """A quantized network of the zoo, its inputs, and its file: made once, since an export takes seconds."""

    model: fx.GraphModule
    inputs: tuple[Tensor, ...]
    path: Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@functools.cache
def exported_once(network: str, target: str, folder: Path) -> Exported:
    net, inputs = small_networks()[network]
    model = isobit.quantize(net, [(inputs,)], target=target)
    path = folder / f"{network}.{target}.onnx"
    isobit.export(model, path)
    return Exported(model, inputs, path)


@pytest.fixture(params=NETWORKS)
def exported(request: pytest.FixtureRequest, folder: Path) -> Exported:
    """Each network as ONNX."""
    return exported_once(request.param, TARGET, folder)


@pytest.fixture
def small(folder: Path) -> Exported:
    """The network that exports fastest."""
    return exported_once("mlp", TARGET, folder)


@pytest.mark.parametrize("network", ["mlp", "depthwise"])
@pytest.mark.parametrize("name", EXPORTERS)
def test_contract(name: str, network: str, folder: Path, tmp_path: Path) -> None:
    if (name, network) == ("ncnn-int8", "mlp"):
        pytest.skip("this format is for convolutional networks, and the mlp works on tokens")
    model, inputs = model_for(name, network, folder)
    check_exporter(EXPORTERS[name](), model, inputs, tmp_path / "net.file")


def model_for(name: str, network: str, folder: Path) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """A network quantized for a target that a format is made for."""
    if name not in PROFILES:
        found = exported_once(network, TARGET, folder)
        return found.model, found.inputs
    made = quantized(network, name)
    return made.model, made.inputs


def check_exporter(exporter: Exporter, model: fx.GraphModule, inputs: tuple[Tensor, ...], path: Path) -> None:
    """The file is whole, known by its hashes, leaves nothing beside it, and leaves the model as it was."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    path.write_text("what stood here before")
    artifact = exporter.export(model, path, example=inputs)
    assert {p.name for p in path.parent.iterdir()} == {path.name, *(p.name for p in artifact.beside)}
    assert artifact.path == path
    assert artifact.format == exporter.format
    assert artifact.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert artifact.integers_sha256 == hash_integers(convert(model))
    assert artifact.metadata["isobit.target"] == artifact.target == preparation(model).profile.name
    again = exporter.export(model, path, example=inputs)
    assert (again.sha256, again.integers_sha256) == (artifact.sha256, artifact.integers_sha256)
    assert (again.beside, again.notes) == (artifact.beside, artifact.notes)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", EXPORTERS)
def test_a_failed_export_leaves_the_old_file(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk gets full while the file is written: none of an export's files appears."""
    model, inputs = model_for(name, "mlp", folder)
    path = tmp_path / "net.onnx"
    path.write_text("old")

    def full(_program: object, file: Path) -> None:
        Path(file).write_bytes(b"half a fi")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ir, "save", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OutputError, match="the disk is full"):
        EXPORTERS[name]().export(model, path, example=inputs)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("name", EXPORTERS)
def test_places_that_cannot_be_written(name: str, folder: Path, tmp_path: Path) -> None:
    model, inputs = model_for(name, "mlp", folder)
    with pytest.raises(OutputError, match="there is no folder"):
        EXPORTERS[name]().export(model, tmp_path / "nowhere" / "net.onnx", example=inputs)
    with pytest.raises(OutputError, match="is a folder"):
        EXPORTERS[name]().export(model, tmp_path, example=inputs)


@pytest.mark.parametrize("name", READERS)
def test_a_path_that_two_files_would_share(name: str, folder: Path, tmp_path: Path) -> None:
    model, inputs = model_for(name, "mlp", folder)
    beside = EXPORTERS[name]().export(model, tmp_path / "net.onnx", example=inputs).beside
    for place in beside:
        with pytest.raises(SettingError, match=r"at once: give another name, such as net\.(onnx|xml)"):
            EXPORTERS[name]().export(model, place, example=inputs)


@pytest.mark.parametrize("name", EXPORTERS)
def test_a_model_without_quantizers_and_a_grid_without_a_form(name: str, tmp_path: Path) -> None:
    net, inputs = small_networks()["mlp"]
    exporter = EXPORTERS[name]()
    with pytest.raises(SettingError, match=r"isobit\.quantize"):
        exporter.export(fx.symbolic_trace(net), tmp_path / "net.onnx", example=inputs)
    reflected = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    model = isobit.quantize(reflected, [torch.randn(4, 3, 6, 6)], target=TARGET)
    with pytest.raises(UnsupportedError, match="reflect padding"):
        exporter.export(model, tmp_path / "net.onnx", example=(torch.randn(2, 3, 6, 6),))
    assert not list(tmp_path.iterdir())


def test_onnx_holds_the_integers_of_the_simulation(exported: Exported) -> None:
    """Each integer tensor and scale of the deployed model is an initializer, byte by byte; no float weight is left."""
    graph = onnx.load(exported.path).graph
    stored = {as_key(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    expected = integers(convert(exported.model))
    missing = [name for name, value in expected.items() if as_key(value.numpy()) not in stored]
    assert not missing
    reads = {n for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul") for n in node.input}
    weights = [t for t in graph.initializer if len(t.dims) > 1 and t.name in reads]
    float_layers = {f.op for f in preparation(exported.model).plan.float_ops} & {"conv", "linear"}
    assert not weights or float_layers


def as_key(x: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    """What identifies a tensor."""
    return str(x.dtype), x.shape, x.tobytes()


def test_onnx_form(exported: Exported) -> None:
    """A valid file at the stated opset, of any batch size, that says what it is and nothing of the machine."""
    file = onnx.load(exported.path)
    onnx.checker.check_model(file, full_check=True)
    assert [(o.domain, o.version) for o in file.opset_import] == [("", 21)]
    for value in (*file.graph.input, *file.graph.output):
        batch, *rest = value.type.tensor_type.shape.dim
        assert batch.dim_param
        assert all(d.dim_value for d in rest)
    metadata = {p.key: p.value for p in file.metadata_props}
    assert metadata.keys() >= {"isobit.version", "isobit.target", "isobit.integers_sha256"}
    assert len(file.graph.input) == len(exported.inputs)
    for place in (str(Path.home()), str(Path(isobit.__file__).parents[2]), ".py"):
        assert place.encode() not in exported.path.read_bytes()


@pytest.mark.parametrize("engine", ["fake", *TARGETS[TARGET].engines])
def test_engines_take_it_at_any_batch_size(engine: str, exported: Exported) -> None:
    runner = ENGINES[engine]()
    if runner.missing():
        pytest.skip(runner.missing())
    session = runner.load(exported.path)
    more = [torch.cat([x, x[:1]]) for x in exported.inputs]
    expected = convert(exported.model)(*more).detach().numpy()
    (three,) = session.run([x.numpy() for x in more])
    (one,) = session.run([x[:1].numpy() for x in exported.inputs])
    assert three.shape == expected.shape
    np.testing.assert_array_equal(one, three[:1])
    assert np.abs(three - expected).max() <= 0.05 * np.abs(expected).max()  # how equal it is, `verify` proves


def text_of(path: Path) -> list[str]:
    """A graph, one op a line: kind, name, attributes, inputs. A number is the line of the op that makes an input;
    a constant is given by its type and shape."""
    graph = onnx.load(path).graph
    made = {v.name: v.name for v in graph.input}
    for t in graph.initializer:
        made[t.name] = f"{onnx.TensorProto.DataType.Name(t.data_type).lower()}{list(t.dims)}"
    lines = [f"input {v.name}" for v in graph.input]
    for number, node in enumerate(graph.node, start=len(lines) + 1):
        attributes = "".join(sorted(f" {a.name}={onnx.helper.get_attribute_value(a)}" for a in node.attribute))
        lines.append(f"{node.op_type} {node.name}{attributes}: " + ", ".join(made.get(i, "-") for i in node.input))
        made |= dict.fromkeys(node.output, f"@{number}")
    return [*lines, *(f"output {made[v.name]}" for v in graph.output)]


@pytest.mark.parametrize("target", [TARGET, "tensorrt"])
@pytest.mark.parametrize("network", ["residual", "depthwise", "mlp"])
def test_exported_graph(network: str, target: str, folder: Path) -> None:
    found = exported_once(network, target, folder)
    lines = text_of(found.path)
    kinds = Counter(line.split()[0] for line in lines)
    plan = preparation(found.model).plan
    assert kinds["QuantizeLinear"] == sum(len(p.tensors) for p in plan.activations)
    check_golden(f"{network}.{target}.onnx.txt", lines)

"""Everything that a user can get wrong on the command line, with the text and the exit code that it must give."""
# ruff: noqa: E501  # a table

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from typer.testing import CliRunner, Result

from graph.from_onnx.exported import export
from isobit.cli.app import app
from isobit.cli.loading import load_model
from isobit.engines import OnnxRuntime, OpenVino

Patch = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command line, what it exits with, and what its error text has to contain. `absent` must not exist after it."""

    name: str
    command: str
    code: int
    says: tuple[str, ...]
    under: Patch = contextlib.nullcontext
    absent: str = ""


def invoke(command: str) -> Result:
    """Run a command line in this process."""
    return CliRunner().invoke(app, command.split())


@contextlib.contextmanager
def read_only() -> Iterator[None]:
    """Every folder is read-only: root ignores permission bits, so the system call is what is replaced."""

    def refuse(*_: object, **settings: object) -> object:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(settings.get("dir")))

    with patch.object(tempfile, "mkstemp", refuse), patch.object(tempfile, "NamedTemporaryFile", refuse):
        yield


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """The disk fills up while a file is synced."""

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with patch.object(os, "fsync", refuse):
        yield


@contextlib.contextmanager
def no_engines() -> Iterator[None]:
    """Neither engine is installed."""
    text = "ONNX Runtime is not installed. Install it with: pip install 'isobit[onnxruntime]'"
    with patch.object(OnnxRuntime, "missing", lambda _: text), patch.object(OpenVino, "missing", lambda _: text):
        yield


@contextlib.contextmanager
def without(package: str) -> Iterator[None]:
    """A package is not installed."""
    loaded = {name: None for name in sys.modules if name.split(".")[0] == package}
    with patch.dict(sys.modules, {**loaded, package: None}):  # type: ignore[dict-item]
        yield


Q = "quantize nets.py:net -d data.py:good -t onnxruntime-x86"


def quantize(data: str) -> str:
    """The command line with other calibration data."""
    return f"quantize nets.py:net -d {data} -t onnxruntime-x86"


def network(model: str) -> str:
    """The command line with another network."""
    return f"quantize {model} -d data.py:good -t onnxruntime-x86"


NAMES = (
    Case(name="unknown target", command="quantize nets.py:net -d data.py:good -t onnxruntime-x68", code=2,
         says=("unknown target 'onnxruntime-x68'", "did you mean 'onnxruntime-x86'?")),
    Case(name="unknown target of `targets`", command="targets tensorT", code=2, says=("did you mean 'tensorrt'?",)),
    Case(name="no target", command="quantize nets.py:net -d data.py:good", code=2, says=("--target", "isobit targets")),
    Case(name="unknown layer to keep", command=f"{Q} --keep-float conv3", code=2,
         says=("unknown layer 'conv3'", "did you mean 'conv", "linear")),
    Case(name="unknown layer with bits", command=f"{Q} --layer-bits conv_2=4", code=2, says=("did you mean 'conv2'?",)),
    Case(name="layer bits not understood", command=f"{Q} --layer-bits conv2:4", code=2, says=("'conv2:4'", "layer1.*=4,8")),
    Case(name="layer bits out of range", command=f"{Q} --layer-bits conv2=12", code=2, says=("'conv2'", "1 to 8", "12")),
    Case(name="a set without a value", command=f"{Q} --set smooth", code=2, says=("--set 'smooth'", "key=value")),
    Case(name="an unknown key set", command=f"{Q} --set bias_corection=true", code=2, says=("did you mean 'bias_correction'?",)),
    Case(name="a key set twice", command=f"{Q} --seed 3 --set seed=4", code=2, says=("give seed once",)),
    Case(name="a negative drop", command=f"{Q} --max-drop -1", code=2, says=("max_drop", "at least 0")),
    Case(name="minutes without a promise", command=f"{Q} --max-minutes 3", code=2, says=("--max-drop",)),
    Case(name="a promise without labels", command=f"{Q} --max-drop 1 --eval-data data.py:two_shapes", code=4, says=("no labels", "--eval-data")),
    Case(name="bits out of range", command=f"{Q} --bits 9", code=2, says=("1 to 8 bits", "got 9")),
    Case(name="bits that are no number", command=f"{Q} --bits four", code=2, says=("'--bits'", "integer", "--help")),
    Case(name="bits twice", command=f"{Q} --bits 8 --weight-bits 4", code=2, says=("--bits or --weight-bits",)),
    Case(name="unknown observer", command=f"{Q} --observer percentil", code=2, says=("unknown observer", "'percentile'")),
    Case(name="unknown key in a recipe", command="quantize nets.py:net -d data.py:good -r unknown_key.toml", code=2,
         says=("'weight_bit'", "did you mean 'weight_bits'?", "unknown_key.toml")),
    Case(name="wrong type in a recipe", command="quantize nets.py:net -d data.py:good -r wrong_type.toml", code=2,
         says=("wrong_type.toml.weight_bits", "a whole number", "'4'")),
    Case(name="recipe that is no TOML", command="quantize nets.py:net -d data.py:good -r no_toml.toml", code=2,
         says=("cannot read the recipe no_toml.toml", "line 1")),
    Case(name="missing recipe", command="quantize nets.py:net -d data.py:good -r nothing.toml", code=2,
         says=("nothing.toml", "No such file")),
    Case(name="unknown option", command=f"{Q} --obsever mse", code=2, says=("--obsever", "--observer")),
    Case(name="unknown command", command="quantise nets.py:net", code=2, says=("'quantise'", "'quantize'")),
    Case(name="no data given", command="quantize nets.py:net -t tensorrt", code=2, says=("'--data'", "isobit quantize --help")),
    Case(name="negative samples", command=f"{Q} --samples -3", code=2, says=("at least 1", "-3")),
    Case(name="unknown verdict", command="verify foreign.onnx --require perfect", code=2, says=("'perfect'", "exact")),
)  # fmt: skip

NETWORKS = (
    Case(name="missing file", command=network("net.py:net"), code=3, says=("there is no file net.py", "'nets.py'")),
    Case(name="missing folder", command=network("models/net.py:net"), code=3, says=("there is no folder models",)),
    Case(name="missing ONNX network", command=network("nothing.onnx"), code=6, says=("no file nothing.onnx",)),
    Case(name="ONNX network that is none", command=network("text.onnx"), code=6, says=("text.onnx", "not an ONNX file")),
    Case(name="ONNX network that is quantized", command=network("net.onnx"), code=5,
         says=("quantized already", "isobit verify")),
    Case(name="ONNX network with an unknown op", command=network("unknown_op.onnx"), code=5,
         says=("unknown_op.onnx", "no support for NonZero (at find)", "Supported are")),
    Case(name="ONNX network to analyse without data", command="analyze foreign.onnx", code=2,
         says=("foreign.onnx is a float network", "--data DATA")),
    Case(name="ONNX network for other data", code=4, command="quantize float.onnx -d data.py:wrong_channels -t onnxruntime-x86",
         says=("does not take the calibration data", "(2, 1, 8, 8)")),
    Case(name="missing callable", command=network("nets.py:ent"), code=3, says=("has no 'ent'", "did you mean 'net'?")),
    Case(name="no callable named", command=network("nets.py"), code=3, says=("nets.py names no object", "nets.py:net")),
    Case(name="missing module", command=network("netz:net"), code=3, says=("no module 'netz'", "'nets'")),
    Case(name="unknown pretrained network", command=network("cifar10_resnet21"), code=2, says=("'cifar10_resnet20'",)),
    Case(name="no network at all", command=network("???"), code=3, says=("'???'", "file.py:callable")),
    Case(name="syntax error", command=network("broken.py:net"), code=3, says=("SyntaxError at broken.py:1", "invalid syntax")),
    Case(name="file that imports what is missing", command=network("imports.py:net"), code=3,
         says=("imports.py:1", "tensorflaw")),
    Case(name="file that raises", command=network("raises.py:net"), code=3, says=("raises.py:3", "nowhere.pt")),
    Case(name="callable that needs arguments", command=network("nets.py:needs_classes"), code=3,
         says=("needs classes", "without arguments")),
    Case(name="callable that raises", command=network("nets.py:fails"), code=3,
         says=("RuntimeError at nets.py:49", "the checkpoint server is down")),
    Case(name="callable that exits", command=network("nets.py:exits"), code=3, says=("SystemExit at nets.py", "usage:")),
    Case(name="state_dict instead of a network", command=network("nets.py:state"), code=3, says=("a dict", "--weights")),
    Case(name="number instead of a network", command=network("nets.py:number"), code=3, says=("gives an int", "nn.Module")),
    Case(name="network that cannot be captured", command=network("nets.py:Branching"), code=3,
         says=("nets.py", "if x.sum() > 0")),
    Case(name="network with other inputs", command=network("nets.py:Pair"), code=4, says=("'y'", "nets.py:Pair")),
    Case(name="network without anything to quantize", command=network("nets.py:Sines"), code=5,
         says=("can quantize no op", "isobit targets")),
    Case(name="weights under other names", command=f"{Q} -w renamed.safetensors", code=3,
         says=("do not belong to this network", "conv1.weight (nearest: conv_1.weight)")),
    Case(name="weights of another shape", command=f"{Q} -w ten_classes.safetensors", code=3,
         says=("linear.weight: (10, 8) in the file, (4, 8) in the network",)),
    Case(name="weights with NaN", command=f"{Q} -w nan.safetensors", code=3, says=("conv2.bias", "NaN", "8 of 8")),
    Case(name="truncated weights", command=f"{Q} -w truncated.safetensors", code=3, says=("truncated",)),
    Case(name="pickled weights", command=f"{Q} -w net.pt", code=3, says=("is a pickle", "safetensors.torch.save_file")),
    Case(name="missing weights", command=f"{Q} -w nothing.safetensors", code=3, says=("no weights file nothing.safetensors",)),
    Case(name="op that the target cannot quantize", command=f"{Q} --quantize norm", code=5,
         says=("'norm'", "no integer layer_norm", "it can quantize")),
)  # fmt: skip

DATA = (
    Case(name="empty data", command=quantize("data.py:empty"), code=4, says=("is empty", "64 to 1,024")),
    Case(name="batches without samples", command=quantize("data.py:no_samples"), code=4, says=("is empty",)),
    Case(name="empty npz", command=quantize("empty.npz"), code=4, says=("empty.npz", "at least one sample")),
    Case(name="data of another shape", command=quantize("data.py:wrong_channels"), code=4,
         says=("(2, 1, 8, 8)", "at nets.py:15", "expected input")),
    Case(name="data of two shapes", command=quantize("data.py:two_shapes"), code=4, says=("batch 1", "(3, 6, 6)", "(3, 8, 8)")),
    Case(name="data with NaN", command=quantize("data.py:with_nan"), code=4, says=("batch 1", "holds NaN")),
    Case(name="data with Inf", command=quantize("data.py:with_inf"), code=4, says=("batch 0", "holds Inf")),
    Case(name="constant data", command=quantize("data.py:constant"), code=4, says=("constant", "real samples")),
    Case(name="batches of texts", command=quantize("data.py:of_strings"), code=4, says=("tensors or numpy arrays", "str")),
    Case(name="batches of three parts", command=quantize("data.py:three_parts"), code=4, says=("3 parts", "((x1, x2), labels)")),
    Case(name="number instead of data", command=quantize("data.py:number"), code=4, says=("gives an int", "not batches")),
    Case(name="data that can be read once", command=quantize("data.py:used_up"), code=4, says=("only once",)),
    Case(name="data that raises midway", command=quantize("data.py:fails_later"), code=4,
         says=("OSError at data.py:49", "image 9 cannot be read")),
    Case(name="data that raises at once", command=quantize("data.py:faulty"), code=4,
         says=("NotImplementedError at data.py:56",)),
    Case(name="data file missing", command=quantize("dta.py:good"), code=4, says=("no file dta.py", "'data.py'")),
    Case(name="data callable missing", command=quantize("data.py:goood"), code=4, says=("'goood'", "'good'")),
    Case(name="data without a callable", command=quantize("data.py"), code=4, says=("data.py:",)),
    Case(name="data that is not there", command=quantize("imagenet/val"), code=4, says=("'imagenet/val'", ".npz")),
    Case(name="data of an unknown kind", command=quantize("net.safetensors"), code=4, says=("neither a folder",)),
    Case(name="unknown data set", command=quantize("cifar10:tets"), code=2, says=("'cifar10:test'",)),
    Case(name="npz without x", command=quantize("no_x.npz"), code=4, says=("no array x", "inputs")),
    Case(name="npz with too few labels", command=quantize("short_labels.npz"), code=4, says=("(31,)", "32 samples")),
    Case(name="npz with pixels", command=quantize("pixels.npz"), code=4, says=("uint8", "unit")),
    Case(name="npz with objects", command=quantize("objects.npz"), code=4, says=("objects.npz", "pickled")),
    Case(name="truncated npz", command=quantize("truncated.npz"), code=4, says=("truncated.npz", "not a whole .npz")),
    Case(name="folder without images", command=quantize("no_images"), code=4, says=("no class folders",)),
    Case(name="folder without classes", command=quantize("flat"), code=4, says=("no class folders", "flat/all")),
    Case(name="image that cannot be decoded", command=quantize("unreadable"), code=4, says=("1.png cannot be decoded",)),
    Case(name="unknown normalization", command=quantize("unreadable") + " --normalize imagenet", code=2,
         says=("unknown normalization", "torch")),
)  # fmt: skip

FILES = (
    Case(name="output in a folder that is missing", command=f"{Q} -o out/net.onnx", code=7, says=("no folder out", "Create it")),
    Case(name="output under a file", command=f"{Q} -o nets.py/net.onnx", code=7, says=("nets.py is no folder",)),
    Case(name="output that is a folder", command=f"{Q} -o no_images", code=7, says=("it is a folder", "no_images/net.onnx")),
    Case(name="read-only folder", command=f"{Q} -o net.onnx", code=7, says=("read-only",), under=read_only, absent="net.onnx"),
    Case(name="full disk", command=f"{Q} -o net.onnx", code=7, says=("disk is full",), under=full_disk, absent="net.onnx"),
    Case(name="report in a read-only folder", command=f"{Q} --report r.html", code=7, says=("r.html", "read-only"),
         under=read_only, absent="r.html"),
    Case(name="demo under a file", command="demo -o nets.py/demo", code=7, says=("nets.py/demo", "-o")),
    Case(name="demo without scikit-learn", command="demo -o demo", code=8, says=("scikit-learn", "isobit[demo]"),
         under=lambda: without("sklearn")),
    Case(name="report without Jinja2", command=f"{Q} --report r.html", code=8, says=("jinja2", "isobit[report]"),
         under=lambda: without("jinja2"), absent="r.html"),
    Case(name="missing ONNX file", command="verify nothing.onnx", code=6, says=("no file nothing.onnx",)),
    Case(name="empty ONNX file", command="verify empty.onnx", code=6, says=("empty.onnx", "Export it again")),
    Case(name="text instead of an ONNX file", command="verify text.onnx", code=6, says=("text.onnx", "not an ONNX file")),
    Case(name="float ONNX file", command="verify foreign.onnx", code=6, says=("nothing in it is quantized", "isobit quantize")),
    Case(name="network for a foreign ONNX file", command="verify foreign.onnx --model nets.py:net --calibration data.py:good",
         code=6, says=("not written by isobit",)),
    Case(name="truncated ONNX file", command="verify truncated.onnx", code=6, says=("truncated.onnx is truncated",)),
    Case(name="engine that is not installed", command="verify net.onnx", code=8,
         says=("not installed", "pip install 'isobit[onnxruntime]'"), under=no_engines),
    Case(name="engine that is asked for and not installed", command=f"{Q} --engine onnxruntime", code=8,
         says=("not installed",), under=no_engines),
    Case(name="verification asked for, no engine", command=f"{Q} --verify", code=8, says=("not installed",), under=no_engines),
    Case(name="unknown engine", command="verify net.onnx --engine onxruntime", code=2, says=("'onnxruntime'",)),
    Case(name="inputs of another shape", command="verify net.onnx -d data.py:wrong_channels", code=8, says=("3 × 8 × 8",)),
    Case(name="weights without a network", command="verify net.onnx -w net.safetensors", code=2, says=("--model",)),
    Case(name="network without its data", command="verify net.onnx --model nets.py:net", code=2, says=("--calibration",)),
    Case(name="file of another network", command="verify net.onnx --model nets.py:other --calibration data.py:good", code=6,
         says=("other integers", "net.onnx")),
)  # fmt: skip

CASES = (*NAMES, *NETWORKS, *DATA, *FILES)


def write_exported(folder: Path) -> None:
    """A whole exported file and a truncated one, made by the command line itself from within `folder`."""
    result = invoke(f"{Q} -o net.onnx --no-verify")
    assert result.exit_code == 0, result.output
    whole = (folder / "net.onnx").read_bytes()
    (folder / "truncated.onnx").write_bytes(whole[: len(whole) // 2])
    export(load_model("nets.py:net"), [torch.zeros(1, 3, 8, 8)], folder / "float.onnx", exporter="unfolded", fixed=True)

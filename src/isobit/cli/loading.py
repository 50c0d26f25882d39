"""From `file.py:callable`, `package.module:callable`, a float ONNX file or a built-in name to a network."""

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from isobit.benchmark.pretrained import PRETRAINED
from isobit.core.batches import as_batch
from isobit.core.errors import CalibrationError, IsobitError, ModelError, UnknownNameError
from isobit.core.weights import load_weights
from isobit.graph.from_onnx import load_onnx

Refused = type[ModelError] | type[CalibrationError]


def load_model(reference: str, weights: Path | None = None) -> nn.Module:
    """The network of a reference, in eval mode, with the weights of a safetensors file.

    The object is an nn.Module, or something that gives one when it is called without arguments. Raises ModelError,
    WeightsError, UnknownNameError; for an ONNX file ArtifactError and UnsupportedError.
    """
    if is_reference(reference):
        found = call(find(reference, error=ModelError), reference, error=ModelError)
        if not isinstance(found, nn.Module):
            raise ModelError(
                f"{reference} gives {described(found)}, not an nn.Module. Name the network, or a function without "
                "arguments that returns it"
            )
        network = found
    elif reference in PRETRAINED:
        network = PRETRAINED[reference].load()
    elif Path(reference).suffix == ".onnx":
        network = load_onnx(reference)
    elif Path(reference).suffix == ".py" or Path(reference).exists():
        raise ModelError(f"{reference} names no object. Say which one, such as {reference}:net")
    else:
        raise _unknown_model(reference)
    if weights is not None:
        load_weights(network, weights)
    return network.eval()


def _unknown_model(reference: str) -> IsobitError:
    near = get_close_matches(reference, PRETRAINED, n=1)
    if near:
        return UnknownNameError("pretrained network", reference, PRETRAINED)
    return ModelError(
        f"{reference!r} is no network. Give file.py:callable or package.module:callable, a float ONNX file, or one of "
        f"{', '.join(PRETRAINED)}"
    )


def is_reference(text: str) -> bool:
    """Whether a text has the form `file.py:name` or `package.module:name`.

    >>> is_reference("nets/resnet.py:net"), is_reference("cifar10:test"), is_reference("imagenet/val")
    (True, True, False)
    """
    place, _, name = text.rpartition(":")
    return bool(place) and all(part.isidentifier() for part in name.split("."))


def find(reference: str, *, error: Refused) -> Any:
    """The object that a reference names, not called."""
    place, _, name = reference.rpartition(":")
    module = _load_file(Path(place), error) if place.endswith(".py") else _load_module(place, error)
    found: Any = module
    for part in name.split("."):
        known = [n for n in vars(found) if not n.startswith("_")] if isinstance(found, (ModuleType, type)) else []
        if part not in known and part not in dir(found):
            raise error(f"{place} has no {name!r}{_nearest(part, known)}")
        found = getattr(found, part)
    return found


def call(function: Any, reference: str, *, error: Refused) -> Any:
    """Call a function or class without arguments; what cannot be called, or is a module, is given as it is.

    Raises `error` with the line of the user's code where that code raises.
    """
    if isinstance(function, nn.Module) or not callable(function):
        return function
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        signature = inspect.Signature()
    empty, gathers = inspect.Parameter.empty, (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in signature.parameters.values() if p.default is empty and p.kind not in gathers]
    if needed:
        raise error(
            f"{reference} needs {', '.join(needed)}, and it is called without arguments. Write a function that takes "
            "none and name that"
        )
    try:
        return function()
    except IsobitError:
        raise
    except (Exception, SystemExit) as raised:
        raise error(f"{reference} raised {explained(raised)}") from raised


def explained(raised: BaseException) -> str:
    """`ValueError at nets.py:12: the text`, with the innermost line of the user's own code.

    The user's code is what lies in no package: neither this one nor an installed one.
    """
    if isinstance(raised, SyntaxError):
        return f"SyntaxError at {_relative(str(raised.filename))}:{raised.lineno}: {raised.msg}"
    frames = traceback.extract_tb(raised.__traceback__)
    own = [f for f in frames if not _is_library(f.filename)]
    where = f" at {_relative(own[-1].filename)}:{own[-1].lineno}" if own else ""
    return f"{type(raised).__name__}{where}: {str(raised).strip() or 'no further text'}"


def _is_library(filename: str) -> bool:
    here = str(Path(__file__).resolve().parents[1])
    return (
        filename.startswith(("<", here, str(Path(inspect.__file__).parent)))
        or "site-packages" in filename
        or "dist-packages" in filename
    )


def _relative(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def _load_file(path: Path, error: Refused) -> ModuleType:
    if not path.is_file():
        folder = path.parent
        names = [p.name for p in folder.glob("*.py")] if folder.is_dir() else []
        missing = f"there is no file {path}" if folder.is_dir() else f"there is no folder {folder}"
        raise error(missing + _nearest(path.name, names))
    resolved = path.resolve()
    name = f"_isobit_user_{abs(hash(str(resolved))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise error(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    if str(resolved.parent) not in sys.path:
        sys.path.insert(0, str(resolved.parent))  # as `python file.py` does, for the files beside it
    sys.modules[name] = module  # dataclasses and typing look their own module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as raised:
        del sys.modules[name]
        raise error(f"{path} cannot be imported: {explained(raised)}") from raised
    return module


def _load_module(name: str, error: Refused) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise error(f"{name!r} is neither a Python file (nets.py) nor a module (package.module)")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as raised:
        if raised.name and (name == raised.name or name.startswith(raised.name + ".")):
            beside = [p.stem for p in Path.cwd().glob("*.py")]
            raise error(
                f"there is no module {raised.name!r} here or among the installed ones{_nearest(name, beside)}"
            ) from raised
        raise error(f"the module {name} cannot be imported: {explained(raised)}") from raised
    except (Exception, SystemExit) as raised:
        raise error(f"the module {name} cannot be imported: {explained(raised)}") from raised


def _nearest(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f": did you mean {near[0]!r}?"
    shown = sorted(known)[:12]
    return f". It has {', '.join(shown)}{', …' if len(known) > 12 else ''}" if shown else ""


def described(found: Any) -> str:
    """An object in words, for what is not what it should be."""
    if isinstance(found, ModuleType):
        return f"the module {found.__name__}"
    if isinstance(found, dict):
        return "a dict (a state_dict goes into --weights, as safetensors)"
    kind = type(found).__name__
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def check_fits(net: nn.Module, model: str, data: Iterable[Any]) -> None:
    """Raise CalibrationError, with the line of the network, where its forward does not take the first samples."""
    batch = next((b for item in data if (b := as_batch(item)).inputs and b.inputs[0].dim() and b.size), None)
    if batch is None:
        raise CalibrationError("the calibration data is empty: give at least one sample (64 to 1,024 are usual)")
    inputs = tuple(x[:2] for x in batch.inputs)
    try:
        with torch.no_grad():
            net(*inputs)
    except Exception as raised:
        shapes = " and ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in inputs)
        raise CalibrationError(
            f"{model} does not take the calibration data, a batch of shape {shapes}: {explained(raised)}"
        ) from raised

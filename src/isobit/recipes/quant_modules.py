"""The one-line replacement: layers that are built from now on get quantizers, when their network is calibrated.

It has the names that users of NVIDIA's pytorch-quantization know. Nothing of torch.nn is replaced: each layer is
marked while it is built, which torch's own hook for new parameters tells, so `from torch.nn import Conv2d` and
subclasses take part too. The network stays an ordinary float network until `isobit.calibrate` sees it.
"""

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.hooks import RemovableHandle

from isobit.core.errors import ModelError, SettingError, UnknownNameError
from isobit.graph.names import names
from isobit.graph.slots import MARK, QUANTIZED_LAYERS
from isobit.recipes.recipe import Recipe, recipe_of

LAYERS: dict[str, type[nn.Module]] = {kind.__name__: kind for kind in QUANTIZED_LAYERS}
"""The layers of torch.nn that can be marked."""


def initialize(
    float_module_list: Sequence[str] | None = None,
    *,
    target: str = "tensorrt",
    bits: int | None = None,
    **settings: Any,
) -> None:
    """From here to `deactivate`, each convolution and linear layer that is built is one to be quantized.

    `float_module_list` names the classes of torch.nn that stay in float, as `["Linear"]`. The rest are the arguments
    of `isobit.prepare`. Then build the network, load its weights and call `isobit.calibrate(net, data)`: it turns that
    very object into what `isobit.prepare` would have given, layers that were built elsewhere staying in float.
    A second call replaces the settings for what is built afterwards.

    Raises UnknownNameError or SettingError for settings that a recipe does not take.

    >>> import torch
    >>> import isobit
    >>> isobit.quant_modules.initialize(target="onnxruntime-x86")
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> isobit.quant_modules.deactivate()
    >>> isobit.calibrate(net, [torch.randn(16, 3, 8, 8)])
    >>> [type(layer).__name__ for layer in net.modules() if hasattr(layer, "weight_slot")]
    ['QuantizedConv2d', 'QuantizedLinear']
    """
    session = _session(float_module_list, target=target, bits=bits, **settings)
    deactivate()
    _open.append(session.begin())


def deactivate() -> None:
    """Layers that are built from here on are ordinary ones. Does nothing where `initialize` was not called."""
    while _open:
        _open.pop().end()


@contextmanager
def quantized_layers(
    float_module_list: Sequence[str] | None = None,
    *,
    target: str = "tensorrt",
    bits: int | None = None,
    **settings: Any,
) -> Iterator[None]:
    """`initialize` for the body of a `with` statement; what was active before is so again behind it.

    >>> with quantized_layers(target="tvm", bits=4):
    ...     net = nn.Sequential(nn.Linear(4, 4))
    >>> recipe_as_built(net).target, recipe_as_built(net).weight_bits
    ('tvm', 4)
    """
    session = _session(float_module_list, target=target, bits=bits, **settings)
    outer = _open.copy()
    for each in outer:
        each.end()
    _open[:] = [session.begin()]
    try:
        yield
    finally:
        deactivate()
        _open[:] = [each.begin() for each in outer]


def recipe_as_built(net: nn.Module) -> Recipe:
    """The recipe that the layers of a network were built under.

    Raises SettingError where no layer was built under one, or layers under several.
    """
    found = [m.__dict__[MARK] for m in net.modules() if MARK in m.__dict__]
    if not found:
        raise SettingError(
            "this network has no quantizers, and no layer of it was built after isobit.quant_modules.initialize(): "
            "call that before the network is built, or use isobit.prepare or isobit.quantize"
        )
    if other := next((r for r in found if r != found[0]), None):
        raise SettingError(
            f"layers of this network were built under different settings, for {found[0].target} and {other.target}: "
            "build all under one, and give single layers other bits with `layer_bits`"
        )
    first: Recipe = found[0]
    return first


def with_float_layers(recipe: Recipe, net: nn.Module, captured: fx.GraphModule) -> Recipe:
    """The recipe with rules that keep those layers of `captured` in float that were not built under it.

    A functional layer, which was never built, is quantized as by `isobit.prepare`.
    """
    built = {path: m for path, m in net.named_modules(remove_duplicate=False) if isinstance(m, tuple(QUANTIZED_LAYERS))}
    others = [
        glob.escape(name)
        for node, name in names(captured.graph).items()
        if node.op == "call_module" and node.target in built and MARK not in built[str(node.target)].__dict__
    ]
    return replace(recipe, keep_float=(*recipe.keep_float, *others))


def become(net: nn.Module, model: fx.GraphModule) -> None:
    """Turn `net` into `model`, in place: who holds `net`, or one of its parameters, holds what is trained.

    `model` is not to be used afterwards. Raises ModelError for a class that cannot change.
    """
    _keep_parameters(net, model)
    try:
        net.__class__ = type(model)
    except TypeError as error:
        raise ModelError(
            f"a {type(net).__name__} cannot be quantized in place ({error}): use isobit.prepare"
        ) from error
    net.__dict__.clear()
    net.__dict__.update(model.__dict__)
    net.graph = model.graph  # type: ignore[assignment]  # which then knows its new owner


def _keep_parameters(net: nn.Module, model: fx.GraphModule) -> None:
    """Let `model` have the Parameter objects of `net` under the same names, with the values that it has itself."""
    before = dict(net.named_parameters(remove_duplicate=False))
    for path, value in list(model.named_parameters(remove_duplicate=False)):
        old = before.get(path)
        if old is not None and old.shape == value.shape:
            owner, _, name = path.rpartition(".")
            old.data = value.data
            model.get_submodule(owner)._parameters[name] = old


@dataclass(frozen=True, kw_only=True, slots=True)
class _Session:
    """Marks layers between `begin` and `end`."""

    recipe: Recipe
    kinds: tuple[type[nn.Module], ...]
    hooks: list[RemovableHandle] = field(default_factory=list)

    def begin(self) -> "_Session":
        self.hooks.append(register_module_parameter_registration_hook(self.mark))
        return self

    def end(self) -> None:
        while self.hooks:
            self.hooks.pop().remove()

    def mark(self, module: nn.Module, name: str, _: nn.Parameter) -> None:
        """Torch calls this for each parameter that any module gets."""
        if name == "weight" and isinstance(module, self.kinds):
            module.__dict__[MARK] = self.recipe


_open: list[_Session] = []
"""The session that `initialize` began; empty where none is active."""


def _session(float_module_list: Sequence[str] | None, **settings: Any) -> _Session:
    left_out = list(float_module_list or ())
    for name in left_out:
        if name not in LAYERS:
            raise UnknownNameError("layer class", name, LAYERS)
    recipe = recipe_of(**settings)
    recipe.profile()
    recipe.preparing()
    return _Session(recipe=recipe, kinds=tuple(kind for name, kind in LAYERS.items() if name not in left_out))

"""Opaque leaves: while a network is traced, each of its layers is one call of the custom op `isobit::leaf`."""

import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules import activation, batchnorm, conv, dropout, instancenorm, padding, pooling, rnn
from torch.utils import _pytree as pytree

SAME_SHAPE: tuple[type[nn.Module], ...] = (
    batchnorm._BatchNorm, instancenorm._InstanceNorm, dropout._DropoutNd, nn.LayerNorm, nn.GroupNorm, nn.Identity,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish,
    nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softplus,
    nn.Softsign, nn.LogSigmoid, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink, nn.Threshold, nn.RMSNorm,
)  # fmt: skip
"""Layers whose output has the shape and type of their one input: their fake kernel need not run them."""

OTHER_SHAPE: tuple[type[nn.Module], ...] = (
    conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, pooling._MaxPoolNd, pooling._AvgPoolNd,
    pooling._LPPoolNd, pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd, nn.Upsample, nn.PixelShuffle,
    nn.PixelUnshuffle, nn.ChannelShuffle, nn.Flatten, nn.Unflatten, padding._ConstantPadNd, padding._ReflectionPadNd,
    padding._ReplicationPadNd, padding._CircularPadNd, nn.GLU, rnn.RNNBase, rnn.RNNCellBase,
)  # fmt: skip
"""The other layers that stay one node of the graph."""

_TORCH_LAYERS = SAME_SHAPE + OTHER_SHAPE


@dataclass(eq=False, slots=True)
class Marker:
    """One call of a leaf: `slots` are its positional arguments, None standing for the next tensor."""

    name: str
    module: nn.Module
    forward: Callable[..., Any]
    slots: list[tuple[Any] | None]
    spec: pytree.TreeSpec | None = None
    switches_off: bool = False
    """Whether the module handed its input through unchanged, as dropout of any kind does in eval mode."""

    def arguments(self, tensors: Iterator[Any]) -> tuple[Any, ...]:
        """The positional arguments, with `tensors` in their places."""
        return tuple(next(tensors) if slot is None else slot[0] for slot in self.slots)


Markers = dict[int, Marker]

_calls = itertools.count()
_active: Markers = {}

_library: Any = torch.library.Library("isobit", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("leaf(Tensor[] xs, int call) -> Tensor[]", tags=(torch.Tag.pt2_compliant_tag,))


def _leaf_eager(xs: list[Tensor], call: int) -> list[Tensor]:
    marker = _active[call]
    out = marker.forward(*marker.arguments(iter(xs)))
    return list(pytree.tree_leaves(out))


def _leaf_fake(xs: list[Tensor], call: int) -> list[Tensor]:
    marker = _active[call]
    if marker.switches_off or (isinstance(marker.module, SAME_SHAPE) and len(marker.slots) == 1):
        marker.spec = pytree.tree_structure(xs[0])
        return [torch.empty_like(xs[0])]
    out = _run_fake(marker, xs)
    tensors, marker.spec = pytree.tree_flatten(out)
    return [y.clone() if any(y is x for x in xs) else y for y in tensors]


_library.impl("leaf", _leaf_eager, "CompositeExplicitAutograd")
torch.library.register_fake("isobit::leaf", _leaf_fake, lib=_library)


def _run_fake(marker: Marker, xs: list[Tensor]) -> Any:
    """Run the real module on fake inputs: its parameters become fake, its patched forward steps aside."""
    mode = xs[0].fake_mode if isinstance(xs[0], FakeTensor) else None
    module, patched = marker.module, marker.module.__dict__["forward"]
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    fakes = {name: _fake(value, mode) for name, value in state.items()}
    del module.__dict__["forward"]
    try:
        return torch.func.functional_call(module, fakes, marker.arguments(iter(xs)))
    finally:
        module.__dict__["forward"] = patched


def _fake(value: Tensor, mode: Any) -> Tensor:
    if mode is None or (isinstance(value, FakeTensor) and value.fake_mode is mode):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def is_leaf(module: nn.Module, extra: tuple[type[nn.Module], ...] = ()) -> bool:
    """Whether `module` stays one node: a torch.nn layer, or a subclass that inherits its forward, or one of `extra`.

    >>> is_leaf(nn.Conv2d(1, 1, 1)), is_leaf(nn.Sequential())
    (True, False)
    """
    if isinstance(module, extra):
        return True
    if not isinstance(module, _TORCH_LAYERS):
        return False
    if isinstance(module, (pooling._MaxPoolNd, pooling._AdaptiveMaxPoolNd)) and module.return_indices:
        return False
    owner = next(c for c in type(module).__mro__ if "forward" in vars(c))
    return owner.__module__.startswith("torch.nn.") and not isinstance(module, activation.MultiheadAttention)


def may_switch_off(module: nn.Module) -> bool:
    """Whether `module` has no state of its own and its forward looks at `self.training`, as DropPath does."""
    if any(True for _ in module.children()) or any(True for _ in module.parameters()):
        return False
    return reads_training(module)


def reads_training(module: nn.Module) -> bool:
    """Whether the forward of `module`, or a method of its class that forward uses, names `training`."""
    pending, seen = ["forward"], {"forward"}
    while pending:
        method = inspect.unwrap(getattr(type(module), pending.pop()))
        if not inspect.isfunction(method):
            continue
        named = method.__code__.co_names
        if "training" in named:
            return True
        further = {n for n in named if n not in vars(nn.Module) and callable(getattr(type(module), n, None))} - seen
        seen |= further
        pending += further
    return False


@contextmanager
def marked(root: nn.Module, extra: tuple[type[nn.Module], ...] = ()) -> Iterator[Markers]:
    """While it holds, each leaf under `root` calls `isobit::leaf`; yields the calls, filled as they happen."""
    markers: Markers = {}
    patched: list[nn.Module] = []
    try:
        for name, module in _leaves(root, extra):
            module.forward = _marking(name, module, markers)
            patched.append(module)
        yield markers
    finally:
        for module in patched:
            del module.forward
        for call in markers:
            _active.pop(call, None)


def _leaves(root: nn.Module, extra: tuple[type[nn.Module], ...]) -> Iterator[tuple[str, nn.Module]]:
    """The outermost leaves, each once, under its first name."""
    inside: tuple[str, ...] = ()
    for name, module in root.named_modules():
        if name.startswith(inside) or not name:
            continue
        if is_leaf(module, extra):
            inside += (name + ".",)
            yield name, module
        elif may_switch_off(module):
            yield name, module


def _marking(name: str, module: nn.Module, markers: Markers) -> Callable[..., Any]:
    forward = module.forward
    signature = inspect.signature(forward)
    only_if_off = not isinstance(module, _TORCH_LAYERS)
    extra_leaf = only_if_off and not may_switch_off(module)

    def call(*args: Any, **kwargs: Any) -> Any:
        if kwargs:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            args, kwargs = bound.args, bound.kwargs
        plain = all(a is None or isinstance(a, (Tensor, bool, int, float, str)) for a in args) and not kwargs
        tensors = [a for a in args if isinstance(a, Tensor)]
        if not plain or not tensors:
            return forward(*args, **kwargs)
        marker = Marker(name, module, forward, [None if isinstance(a, Tensor) else (a,) for a in args])
        if only_if_off and not extra_leaf:
            out = forward(*args)
            if out is not args[0]:
                return out
            marker.switches_off = True
        number = next(_calls)
        markers[number] = _active[number] = marker
        flat = torch.ops.isobit.leaf(tensors, number)
        if marker.spec is None:
            marker.spec = pytree.tree_structure(tensors[0])
        return pytree.tree_unflatten(flat, marker.spec)

    return call

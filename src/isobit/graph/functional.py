"""Functional layers become modules: `F.conv2d(x, self.weight)` is a call of the module that owns the weight."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from isobit.graph.attention import Attention
from isobit.graph.leaves import reads_training
from isobit.graph.names import owner_path

aten = torch.ops.aten
Arguments = dict[str, Any]
Tensors = Mapping[str, Tensor | None]

FUNCTIONS: dict[Any, str] = {
    aten.conv1d.default: "conv", aten.conv2d.default: "conv", aten.conv3d.default: "conv",
    aten.conv1d.padding: "conv", aten.conv2d.padding: "conv", aten.conv3d.padding: "conv",
    torch.conv1d: "conv", torch.conv2d: "conv", torch.conv3d: "conv",
    aten.conv_transpose1d.default: "conv_transpose", aten.conv_transpose2d.input: "conv_transpose",
    aten.conv_transpose3d.input: "conv_transpose", torch.conv_transpose1d: "conv_transpose",
    torch.conv_transpose2d: "conv_transpose", torch.conv_transpose3d: "conv_transpose",
    aten.linear.default: "linear", F.linear: "linear",
    aten.batch_norm.default: "batch_norm", F.batch_norm: "batch_norm",
    aten.layer_norm.default: "layer_norm", F.layer_norm: "layer_norm",
    aten.group_norm.default: "group_norm", F.group_norm: "group_norm",
    aten.dropout.default: "dropout", F.dropout: "dropout",
    aten.feature_dropout.default: "feature_dropout", F.dropout1d: "feature_dropout",
    F.dropout2d: "feature_dropout", F.dropout3d: "feature_dropout",
    aten.alpha_dropout.default: "alpha_dropout", F.alpha_dropout: "alpha_dropout",
    aten.softmax.int: "softmax",
    aten.scaled_dot_product_attention.default: "attention", F.scaled_dot_product_attention: "attention",
}  # fmt: skip
"""Functions that become modules."""

_SCHEMAS: dict[Any, Any] = {
    torch.conv1d: aten.conv1d.default,
    torch.conv2d: aten.conv2d.default,
    torch.conv3d: aten.conv3d.default,
    torch.conv_transpose1d: aten.conv_transpose1d.default,
    torch.conv_transpose2d: aten.conv_transpose2d.input,
    torch.conv_transpose3d: aten.conv_transpose3d.input,
    F.linear: aten.linear.default,
    F.scaled_dot_product_attention: aten.scaled_dot_product_attention.default,
}
"""Functions without a signature in Python have the one of an overload."""

_OPERANDS = {
    "conv": ("weight", "bias"),
    "conv_transpose": ("weight", "bias"),
    "linear": ("weight", "bias"),
    "batch_norm": ("weight", "bias", "running_mean", "running_var"),
    "layer_norm": ("weight", "bias"),
    "group_norm": ("weight", "bias"),
}
_CONV: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE: tuple[type[nn.Module], ...] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORM: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def modules_for_functions(graph: fx.Graph, root: nn.Module) -> set[str]:
    """Turn each functional layer of `graph` into a call of a module of `root`, which is changed in place.

    Where the owner of the parameters is a layer of that kind (a subclass with its own forward), it becomes the
    plain layer under its own name; else it gets a child that shares the parameters and adds no key to state_dict.
    Returns the names of the modules whose functions switch with the mode now.
    """
    switching: set[str] = set()
    claimed: dict[str, Arguments] = {}
    for node in list(graph.nodes):
        kind = FUNCTIONS.get(node.target) if node.op == "call_function" else None
        if kind is None:
            continue
        arguments = normalised(node)
        if arguments is None:
            continue
        if kind in ("batch_norm", "dropout", "feature_dropout", "alpha_dropout", "attention"):
            switching.add(owner_path(node))
        if kind in _OPERANDS:
            _use_owner(graph, node, root, kind, arguments, claimed)
        elif kind == "softmax":
            switching |= _drop_weights(graph, node, root)
        elif kind == "attention":
            _use_attention(graph, node, root, arguments)
        else:
            _use_dropout(graph, node, root, kind, arguments)
    return switching


def normalised(node: fx.Node) -> Arguments | None:
    """The arguments of a function call by name, defaults filled in; None where they cannot be bound."""
    target = _SCHEMAS.get(node.target, node.target)
    if isinstance(target, torch._ops.OpOverload):
        schema = target._schema.arguments
        named = {a.name: a.default_value for a in schema if a.has_default_value()}
        named.update(zip((a.name for a in schema), node.args, strict=False))
        return {**named, **node.kwargs}
    try:
        bound = inspect.signature(target).bind(*node.args, **node.kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    return dict(bound.arguments)


def add_child(root: nn.Module, owner: str, name: str, module: nn.Module, kind: str = "") -> str:
    """Put `module` below `owner` under a free name, with `kind` behind it where it is taken; return the dotted name."""
    parent = root.get_submodule(owner)
    free, count = name, 1
    if kind and _taken(parent, free):
        free = name = f"{name}_{kind}"
    while _taken(parent, free):
        count += 1
        free = f"{name}_{count}"
    parent.add_module(free, module)
    return f"{owner}.{free}" if owner else free


def _taken(parent: nn.Module, name: str) -> bool:
    return name in parent._modules or name in dir(parent)


def _call(graph: fx.Graph, node: fx.Node, target: str, args: tuple[Any, ...]) -> None:
    with graph.inserting_before(node):
        new = graph.create_node("call_module", target, args)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def _use_dropout(graph: fx.Graph, node: fx.Node, root: nn.Module, kind: str, arguments: Arguments) -> None:
    """`F.dropout(x, p, False)` was captured in eval mode; with True it drops in eval mode too and stays so.

    A rate of 0 may be that of eval mode alone, as in `F.dropout(x, self.dropout if self.training else 0.0)`.
    """
    if arguments.get("train", arguments.get("training")) is not False:
        return
    owner = owner_path(node)
    p = float(arguments["p"]) or dropout_of(root.get_submodule(owner))
    made = {"dropout": nn.Dropout, "feature_dropout": nn.Dropout2d, "alpha_dropout": nn.AlphaDropout}[kind](p)
    made.train(root.get_submodule(owner).training)
    _call(graph, node, add_child(root, owner, "dropout", made), (arguments["input"],))


def _use_attention(graph: fx.Graph, node: fx.Node, root: nn.Module, arguments: Arguments) -> None:
    dropout, scale = arguments["dropout_p"], arguments["scale"]
    if not isinstance(arguments["is_causal"], bool) or isinstance(scale, fx.Node) or isinstance(dropout, fx.Node):
        return
    owner = owner_path(node)
    module = root.get_submodule(owner)
    made = Attention(
        dropout=dropout or dropout_of(module),
        is_causal=arguments["is_causal"],
        scale=scale,
        enable_gqa=bool(arguments["enable_gqa"]),
    ).train(module.training)
    mask = arguments["attn_mask"]
    args = (arguments["query"], arguments["key"], arguments["value"], *(() if mask is None else (mask,)))
    _call(graph, node, add_child(root, owner, "attention", made), args)


def _drop_weights(graph: fx.Graph, node: fx.Node, root: nn.Module) -> set[str]:
    """nn.MultiheadAttention that returns its weights drops some of them, but calls no dropout at all in eval mode.

    Returns its name where it does.
    """
    owner = owner_path(node)
    module = root.get_submodule(owner)
    if not isinstance(module, nn.MultiheadAttention) or not module.dropout:
        return set()
    target = add_child(root, owner, "weight_dropout", nn.Dropout(module.dropout).train(module.training))
    with graph.inserting_after(node):
        new = graph.create_node("call_module", target, (node,))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    return {owner}


def dropout_of(module: nn.Module) -> float:
    """The dropout rate that an attention module applies in train mode, by the names that libraries give it."""
    for name in ("dropout", "attn_drop", "attn_dropout", "attention_dropout", "dropout_p", "dropout_prob"):
        found = module.__dict__.get(name, module._modules.get(name))
        if isinstance(found, nn.Dropout):
            return found.p
        if isinstance(found, float):
            return found
    return 0.0


def _use_owner(
    graph: fx.Graph, node: fx.Node, root: nn.Module, kind: str, arguments: Arguments, claimed: dict[str, Arguments]
) -> None:
    names = _OPERANDS[kind]
    nodes = {n: arguments.get(n) for n in names}
    if any(v is not None and not (isinstance(v, fx.Node) and v.op == "get_attr") for v in nodes.values()):
        return
    paths = {n: str(v.target) for n, v in nodes.items() if isinstance(v, fx.Node)}
    owners = {p.rpartition(".")[0] for p in paths.values()}
    if len(owners) != 1:
        return
    owner = owners.pop()
    module = root.get_submodule(owner)
    tensors = {n: _tensor(module, paths[n].rpartition(".")[2]) if n in paths else None for n in names}
    settings = {k: v for k, v in arguments.items() if not isinstance(v, fx.Node)}
    rank = _rank(arguments["input"], module)
    plain = _layer(kind, tensors, settings, rank)
    if plain is None or (kind == "batch_norm" and not _switches(module)):
        return
    same = all(p.rpartition(".")[2] == n for n, p in paths.items()) and all(
        tensors[n] is module._parameters.get(n, module._buffers.get(n)) for n in names
    )
    if same and owner and isinstance(module, type(plain)) and claimed.setdefault(owner, settings) == settings:
        _make_plain(module, plain)
        target = owner
    else:
        stem = paths["weight"].rpartition(".")[2].removesuffix("weight").strip("_") if "weight" in paths else ""
        borrowed = _borrowing(plain, tensors, module).train(module.training)
        target = add_child(root, owner, stem or kind, borrowed, kind if stem else "")
    _call(graph, node, target, (arguments["input"],))


def _rank(x: fx.Node, module: nn.Module) -> int | None:
    """How many dimensions `x` has; where a trace without shapes does not tell, the type of a batch norm does."""
    value = x.meta.get("val")
    if isinstance(value, Tensor):
        return value.dim()
    kinds = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
    return next((rank for kind, rank in kinds.items() if isinstance(module, kind)), None)


def _tensor(module: nn.Module, name: str) -> Tensor | None:
    return module._parameters.get(name, module._buffers.get(name))


def _switches(module: nn.Module) -> bool:
    """Whether a functional batch norm follows train and eval; one that always uses its statistics must stay so."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or reads_training(module)


def _make_plain(module: nn.Module, plain: nn.Module) -> None:
    """Let `module` be of the type of `plain`, with its settings and with its own parameters, children and name."""
    if type(module) is not type(plain):
        module.__class__ = type(plain)
    kept = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")
    owned = {k: v for k, v in plain.__dict__.items() if k not in kept and not k.endswith("_hooks")}
    module.__dict__.update({k: v for k, v in owned.items() if not k.startswith("_backward")})


def _borrowing(plain: nn.Module, tensors: Tensors, owner: nn.Module) -> nn.Module:
    """`plain` with parameters that belong to its parent, and without keys of its own in state_dict."""
    for name, value in tensors.items():
        if name in plain._parameters:
            plain._parameters[name] = value if isinstance(value, nn.Parameter) or value is None else None
            if value is not None and not isinstance(value, nn.Parameter):
                del plain._parameters[name]
                plain.register_buffer(name, value, persistent=False)
        elif name in plain._buffers:
            plain._buffers[name] = value
    if isinstance(plain, nn.modules.batchnorm._BatchNorm):
        plain._buffers["num_batches_tracked"] = owner._buffers.get("num_batches_tracked")
    plain.register_state_dict_post_hook(_drop_keys)  # type: ignore[no-untyped-call]
    plain.register_load_state_dict_pre_hook(_fill_keys)  # type: ignore[no-untyped-call]
    return plain


def _drop_keys(module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for name in (*module._parameters, *module._buffers):
        state.pop(prefix + name, None)


def _fill_keys(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Each of its tensors is loaded by the parent; here it is loaded with itself."""
    for name, value in (*module._parameters.items(), *module._buffers.items()):
        state.pop(prefix + name, None)
        if value is not None and name not in module._non_persistent_buffers_set:
            state[prefix + name] = value


def _conv(t: Tensors, s: Arguments, rank: int | None) -> nn.Module | None:
    weight = t["weight"]
    if weight is None or weight.dim() not in (3, 4, 5) or rank not in (weight.dim(), weight.dim() - 1, None):
        return None
    dims = weight.dim() - 2
    padding = s["padding"] if isinstance(s["padding"], str) else _per_axis(s["padding"], dims)
    return _CONV[dims - 1](
        weight.shape[1] * s["groups"],
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=_per_axis(s["stride"], dims),
        padding=padding,
        dilation=_per_axis(s["dilation"], dims),
        groups=s["groups"],
        bias=t["bias"] is not None,
        device="meta",
    )


def _conv_transpose(t: Tensors, s: Arguments, rank: int | None) -> nn.Module | None:
    weight = t["weight"]
    if weight is None or weight.dim() not in (3, 4, 5) or rank not in (weight.dim(), weight.dim() - 1, None):
        return None
    dims = weight.dim() - 2
    return _CONV_TRANSPOSE[dims - 1](
        weight.shape[0],
        weight.shape[1] * s["groups"],
        tuple(weight.shape[2:]),
        stride=_per_axis(s["stride"], dims),
        padding=_per_axis(s["padding"], dims),
        output_padding=_per_axis(s["output_padding"], dims),
        dilation=_per_axis(s["dilation"], dims),
        groups=s["groups"],
        bias=t["bias"] is not None,
        device="meta",
    )


def _linear(t: Tensors, _s: Arguments, _rank: int | None) -> nn.Module | None:
    weight = t["weight"]
    if weight is None or weight.dim() != 2:
        return None
    return nn.Linear(weight.shape[1], weight.shape[0], bias=t["bias"] is not None, device="meta")


def _batch_norm(t: Tensors, s: Arguments, rank: int | None) -> nn.Module | None:
    mean = t["running_mean"]
    if mean is None or rank is None or rank not in (2, 3, 4, 5) or s["training"] is not False:
        return None
    cls = _BATCH_NORM[rank - 2]
    return cls(mean.shape[0], eps=s["eps"], momentum=s["momentum"], affine=t["weight"] is not None, device="meta")


def _layer_norm(t: Tensors, s: Arguments, _rank: int | None) -> nn.Module | None:
    shape, affine = list(s["normalized_shape"]), t["weight"] is not None
    if not affine:
        return None
    return nn.LayerNorm(shape, eps=s["eps"], bias=t["bias"] is not None, device="meta")


def _group_norm(t: Tensors, s: Arguments, _rank: int | None) -> nn.Module | None:
    weight = t["weight"]
    if weight is None or t["bias"] is None:
        return None
    return nn.GroupNorm(s["num_groups"], weight.shape[0], eps=s["eps"], device="meta")


_LAYERS: dict[str, Callable[[Tensors, Arguments, int | None], nn.Module | None]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
}


def _layer(kind: str, tensors: Tensors, settings: Arguments, rank: int | None) -> nn.Module | None:
    return _LAYERS[kind](tensors, settings, rank)


def _per_axis(value: Any, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values

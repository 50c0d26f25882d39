"""Outlier channel splitting: a channel with a large weight becomes two halves (Zhao et al. 2019, arXiv:1901.09504)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerGroup, blocks, expand, from_blocks
from isobit.core.qparams import scale_and_zero_point
from isobit.core.scheme import Scheme
from isobit.graph.capped import CappedReLU
from isobit.graph.names import display_name, function_name
from isobit.graph.passes.batch_norms import output_axis
from isobit.graph.passes.equalize import Pair, find_pairs, input_rows, own_parameters
from isobit.graph.passes.folded_moments import Moments, moments_of, set_moments
from isobit.graph.passes.protocol import PassReport
from isobit.graph.tensors import Tensors, tensors_of

KEY = "split_channels"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SplitChannels:
    """Split the input channel that holds a layer's largest weight, again and again, ceil(`share` · channels) times.

    Each w of it becomes (w - Δ/2) / 2 and (w + Δ/2) / 2, whose roundings to steps of Δ add up to that of w (section
    3.4); the channel itself is computed twice, by the layer in front, whose largest output is not what is large here.
    The range of the weights shrinks, and with it Δ, which is the step of `scheme` for the weights as split. A depthwise
    convolution in front passes both on from the layer before it. It costs memory and arithmetic for each channel.
    """

    share: float = 0.02
    scheme: Scheme = Scheme()
    name: str = "split_channels"
    requires: str = "a captured model without batch norm between the layers, not prepared yet"
    ensures: str = "the output in eval mode is unchanged, to the rounding of float32"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SettingError(f"the share of channels to split is above 0, up to 1, got {self.share}")
        if isinstance(self.scheme.granularity, PerGroup):
            raise UnsupportedError("channels cannot be split where a group of them shares a scale: set it to 0")

    @torch.no_grad()
    def apply(self, model: fx.GraphModule) -> PassReport:
        """Split in place, once for each layer. Each pair of layers that stays is named with the reason."""
        tensors = tensors_of(model)
        pairs, left = find_pairs(model, tensors)
        before: Mapping[str, Pair] = {pair.second: pair for pair in pairs}
        done = model.meta.get(KEY, frozenset())
        changed = []
        for pair in pairs:
            chain = _chain(model, tensors, pair, before)
            if isinstance(chain, str):
                left.append(f"{pair.first}: {chain}")
            elif pair.second not in done:
                second = model.get_submodule(pair.second)
                own_parameters(second)
                origin = self._split(second)
                for link in chain:
                    _repeat_outputs(model, link, origin)
                changed.append(f"{pair.first}, {pair.second}: {len(origin)} channels")
                done |= {pair.second}
        model.meta[KEY] = done
        model.graph.lint()
        model.recompile()
        return PassReport(changed=tuple(changed), left=tuple(left))

    def _split(self, layer: nn.Module) -> list[int]:
        """Split the input channels of one layer; which channel each of the new ones, at the end, is a part of."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        (rows,) = input_rows(layer, weight.detach().double())
        count = math.ceil(self.share * len(rows))
        halved, _ = split_rows(rows, torch.zeros(()), count)
        step = self._step(_as_weight(layer, halved))
        (steps,) = input_rows(layer, step.expand(_as_weight(layer, halved).shape))
        found, origin = split_rows(rows, steps[0].double(), count)
        new = _as_weight(layer, found).to(weight.dtype).contiguous()
        layer.weight = nn.Parameter(new, requires_grad=weight.requires_grad)
        key = "in_features" if isinstance(layer, nn.Linear) else "in_channels"
        setattr(layer, key, len(found))
        return origin

    def _step(self, weight: Tensor) -> Tensor:
        """The scale of a weight whose range is all of it, shaped to broadcast against it."""
        values = blocks(weight, self.scheme.granularity)
        low, high = (from_blocks(x, weight.shape, self.scheme.granularity) for x in (values.amin(1), values.amax(1)))
        return expand(scale_and_zero_point(low, high, self.scheme)[0], weight.dim(), self.scheme.granularity)


def split_rows(rows: Tensor, step: Tensor, count: int) -> tuple[Tensor, list[int]]:
    """Split the row of the largest magnitude `count` times: all rows, new ones last, and what each new one is part of.

    Shapes: rows (channels, …); step broadcasts against one of them, 0 for plain halves.

    >>> split_rows(torch.tensor([[1.0], [6.0]]), torch.tensor(1.0), 1)
    (tensor([[1.0000],
            [2.7500],
            [3.2500]]), [1])
    """
    rows, origin = rows.clone(), list(range(len(rows)))
    for _ in range(count):
        i = int(rows.flatten(1).abs().amax(1).argmax())
        upper = (rows[i] + step / 2) / 2
        rows[i] = (rows[i] - step / 2) / 2
        rows = torch.cat((rows, upper[None]))
        origin.append(origin[i])
    return rows, origin[len(origin) - count :]


def _as_weight(layer: nn.Module, rows: Tensor) -> Tensor:
    """The inverse of `input_rows` for a layer without groups."""
    return rows if isinstance(layer, _ConvTransposeNd) else rows.transpose(0, 1)


def _chain(model: fx.GraphModule, tensors: Tensors, pair: Pair, before: Mapping[str, Pair]) -> list[Pair] | str:
    """The pairs whose first layers have to give a channel twice, so that the last one's second reads it; or why not."""
    if int(getattr(model.get_submodule(pair.second), "groups", 1)) > 1:
        return f"{pair.second} has groups: it would not add the two halves up"
    chain = [pair]
    while int(getattr(first := model.get_submodule(chain[0].first), "groups", 1)) > 1:
        depthwise = isinstance(first, _ConvNd) and first.groups == first.in_channels == first.out_channels
        if not depthwise or isinstance(first, _ConvTransposeNd):
            return f"{chain[0].first} has groups of channels"
        if chain[0].first not in before:
            return f"nothing in front of the depthwise {chain[0].first} gives its channels twice"
        chain.insert(0, before[chain[0].first])
    for node in (n for link in chain for n in link.between):
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        flattens = isinstance(module, nn.Flatten) or function_name(node.target) in ("flatten", "squeeze")
        if tensors.kinds[node] == "reshape" and not flattens:
            return f"{display_name(node)} may count on the number of channels"
        if tensors.kinds[node] == "prelu" and module is None:
            return f"{display_name(node)} has slopes that are not a module's"
    return chain


def _repeat_outputs(model: fx.GraphModule, pair: Pair, origin: list[int]) -> None:
    """Let the first layer of a pair, and what is between the two, have the channels of `origin` once more."""
    first = model.get_submodule(pair.first)
    own_parameters(first)
    assert isinstance(first.weight, Tensor)
    axis = output_axis(first)
    repeat = torch.tensor([*range(first.weight.shape[axis]), *origin])
    first.weight = _picked(first.weight, repeat, axis)
    if isinstance(first.bias, Tensor):
        first.bias = _picked(first.bias, repeat, 0)
    setattr(first, "out_features" if isinstance(first, nn.Linear) else "out_channels", len(repeat))
    if int(getattr(first, "groups", 1)) > 1:
        first.groups = first.in_channels = len(repeat)  # type: ignore[assignment]
    if (found := moments_of(model, pair.first)) is not None:
        set_moments(model, pair.first, Moments(found.mean[repeat], found.deviation[repeat]))
    node = next(n for n in model.graph.nodes if n.op == "call_module" and n.target == pair.first)
    channels = -1 if isinstance(first, nn.Linear) else 1
    for now in (node, *pair.between):
        module = model.get_submodule(str(now.target)) if now.op == "call_module" else None
        if isinstance(module, CappedReLU):
            module.cap = module.cap[repeat]
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            module.weight, module.num_parameters = _picked(module.weight, repeat, 0), len(repeat)
        if isinstance(seen := now.meta.get("val"), Tensor):
            more = seen.narrow(channels if seen.dim() > 2 else 1, 0, 1)
            shape = [-1] * seen.dim()
            shape[channels if seen.dim() > 2 else 1] = len(origin)
            now.meta["val"] = torch.cat((seen, more.expand(shape)), channels if seen.dim() > 2 else 1)


def _picked(value: Tensor, index: Tensor, axis: int) -> nn.Parameter:
    return nn.Parameter(value.detach().index_select(axis, index), requires_grad=value.requires_grad)

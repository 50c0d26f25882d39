"""Distillation: a network learns from a teacher's outputs and feature maps, with labels or without any."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from isobit.algorithms.training import Training
from isobit.core.errors import SettingError, UnknownNameError
from isobit.graph.captured import copied
from isobit.graph.folding import is_folded
from isobit.graph.insert import SLOTS

WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)
"""Layers that make a block a block, and of which one is the last layer."""

SMALLEST_POWER = 1e-12
"""The sum of squares of a teacher's feature map below which it counts as this."""


def soft_targets(logits: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """T² KL(softmax(teacher / T) ‖ softmax(student / T)), the mean over the batch (Hinton et al. 2015)."""
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(wanted / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def output_error(logits: Tensor, wanted: Tensor) -> Tensor:
    """The mean of (student - teacher)² over batch and classes."""
    return F.mse_loss(_precise(logits), _precise(wanted))


def feature_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """The mean over the maps of Σ (student - teacher)² / Σ teacher²: 0 for equal maps, 1 for a student of zeros.

    That is a mean squared error of maps in units of the teacher's power, so that every layer counts alike. The sums
    run over the batch. Shapes: a student's map is shaped as the teacher's.

    >>> float(feature_error([torch.tensor([[1.0, 2.0]])], [torch.tensor([[1.0, 3.0]])]))
    0.10000000149011612
    """
    pairs = [(_precise(x), _precise(t)) for x, t in zip(found, wanted, strict=True)]
    return torch.stack([(x - t).square().sum() / t.square().sum().clamp(min=SMALLEST_POWER) for x, t in pairs]).mean()


def _precise(x: Tensor) -> Tensor:
    """In float32 at least: mixed precision gives maps in 16 bits, whose squares overflow."""
    return x.float() if x.dtype.itemsize < 4 else x


@dataclass(frozen=True, slots=True)
class Place:
    """A feature map: the output of the module `layer`, or its input."""

    layer: str
    is_input: bool = False

    def __str__(self) -> str:
        return f"the input of {self.layer}" if self.is_input else f"the output of {self.layer}"


Taps = Callable[..., tuple[Tensor, list[Tensor]]]
"""A network that gives its output and its feature maps."""


@final
class Distillation:
    """A student and its teacher, which stays in eval mode. Plain, so that neither is stored in a checkpoint twice.

    Raises UnknownNameError for a feature layer that student or teacher do not have, SettingError for one that has no
    single output, or is not computed on its own.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, settings: Training) -> None:
        self.settings, self.teacher = settings, teacher.eval()
        self.places = feature_places(student, settings.feature_layers) if settings.feature_distillation else ()
        self._step: Taps = tapped(student, self.places, compiled=settings.compile)
        self._wanted: Taps = tapped(teacher, self.places, compiled=settings.compile and not self.places, of="teacher")

    def student(self, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The student's output and feature maps."""
        return self._step(*inputs)

    def loss(
        self, inputs: tuple[Tensor, ...], logits: Tensor, features: list[Tensor], supervised: Tensor | None
    ) -> Tensor:
        """(1 - d) L + d · soft targets + f · feature error, L the supervised loss, or the output error without labels.

        d is `distillation`, f `feature_distillation`. Raises SettingError where outputs or maps differ in shape.
        """
        s = self.settings
        with torch.no_grad():
            wanted, maps = self._wanted(*inputs)
        names = ["the output", *map(str, self.places)]
        for name, x, t in zip(names, [logits, *features], [wanted, *maps], strict=True):
            if x.shape != t.shape:
                raise SettingError(
                    f"{name} has the shape {tuple(x.shape)} in the student and {tuple(t.shape)} in the teacher: "
                    "choose a teacher, or feature_layers, that have the same"
                )
        loss = output_error(logits, wanted) if supervised is None else supervised
        if s.distillation:
            loss = (1 - s.distillation) * loss + s.distillation * soft_targets(logits, wanted, s.temperature)
        return loss + s.feature_distillation * feature_error(features, maps) if maps else loss


def feature_places(model: nn.Module, layers: tuple[str, ...] = ()) -> tuple[Place, ...]:
    """The outputs of `layers`; without any, the outputs of the blocks, then the input of the last layer.

    Blocks are the members of a Sequential or ModuleList that hold at least two layers with weights, or, where there are
    none, the network's own members that do; the last of a stage ends the stage. Raises UnknownNameError for a layer
    that the network does not have.
    """
    modules = dict(model.named_modules())
    for name in layers:
        if not name or name not in modules:
            raise UnknownNameError("layer in feature_layers", name, _user_names(modules))
    if layers:
        return tuple(Place(name) for name in layers)
    blocks = [name for name in _blocks(modules) if _has_one_output(model, name)]
    weighted = [name for name, module in modules.items() if isinstance(module, WEIGHTED)]
    if isinstance(model, fx.GraphModule):
        weighted = [str(n.target) for n in model.graph.nodes if n.op == "call_module" and str(n.target) in weighted]
    if not weighted:
        raise SettingError("the network has no convolution and no linear layer: name feature_layers")
    return (*(Place(name) for name in blocks), Place(weighted[-1], is_input=True))


def tapped(model: nn.Module, places: Sequence[Place], *, compiled: bool = False, of: str = "student") -> Taps:
    """The network with its feature maps at `places`; it shares all modules with `model`, which stays as it is.

    In a captured network a map is the tensor in front of its quantizer. Raises as `Distillation` does.
    """
    if not places:
        run: Any = torch.compile(model) if compiled else model
        return lambda *inputs: (run(*inputs), [])
    if isinstance(model, fx.GraphModule):
        return _of_graph(model, places, compiled=compiled)
    if compiled:
        raise SettingError("compile with feature_distillation is for captured networks: set one of them to 0 or false")
    modules = dict(model.named_modules())
    for place in places:
        if place.layer not in modules:
            raise UnknownNameError(f"layer of the {of}", place.layer, modules)
    return lambda *inputs: _with_hooks(model, [(modules[p.layer], p) for p in places], inputs)


def _with_hooks(
    model: nn.Module, watched: list[tuple[nn.Module, Place]], inputs: tuple[Tensor, ...]
) -> tuple[Tensor, list[Tensor]]:
    """One pass of a network as the user wrote it. Of a module that runs several times, the last one counts."""
    found: dict[Place, Any] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, x, p=place: found.__setitem__(p, _kept(x[0])))
        if place.is_input
        else module.register_forward_hook(lambda _, _x, y, p=place: found.__setitem__(p, _kept(y)))
        for module, place in watched
    ]
    try:
        output = model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for _, place in watched:
        if not isinstance(found.get(place), Tensor):
            raise SettingError(f"{place} is no tensor, or is never computed: choose other feature_layers")
    return output, [found[place] for _, place in watched]


def _kept(x: Any) -> Any:
    """A copy: a layer behind may overwrite the tensor."""
    return x.clone() if isinstance(x, Tensor) else x


def _of_graph(model: fx.GraphModule, places: Sequence[Place], *, compiled: bool) -> Taps:
    """A second graph over the same modules, with a probe at each place."""
    graph = copied(model.graph)
    probes = [_Probe() for _ in places]
    nodes = [_tensor_at(model, graph, place) for place in places]
    shadow = fx.GraphModule(model, fx.Graph())
    for store in ("_modules", "_parameters", "_buffers"):
        getattr(shadow, store).update(getattr(model, store))
    for number, (node, probe) in enumerate(zip(nodes, probes, strict=True)):
        key = f"isobit_probe_{number}"
        shadow.add_module(key, probe)
        with graph.inserting_after(node):
            graph.call_module(key, (node,))
    shadow.graph = graph
    run: Any = torch.compile(shadow) if compiled else shadow

    def step(*inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        output = run(*inputs)
        return output, [probe.taken() for probe in probes]

    return step


@final
class _Probe(nn.Module):
    """Keeps the tensor that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor | None = None

    def forward(self, x: Tensor) -> None:
        """Shapes: any."""
        self.seen = x

    def taken(self) -> Tensor:
        """The tensor, once."""
        x, self.seen = self.seen, None
        assert x is not None
        return x


def _tensor_at(model: fx.GraphModule, graph: fx.Graph, place: Place) -> fx.Node:
    """The node of a feature map; `graph` is the network's, or a copy of it."""
    if place.is_input:
        (call, *_) = [n for n in graph.nodes if n.op == "call_module" and n.target == place.layer]
        return _before_slot(call.all_input_nodes[0])
    name, module = place.layer, model.get_submodule(place.layer)
    folded = {layer.norm: path for path, layer in model.named_modules() if is_folded(layer)}
    if is_folded(module):
        norm = next(path for path, found in model.named_modules() if found is module.norm)
        raise SettingError(f"{name} trains folded with its batch norm: name {norm} in feature_layers, or its block")
    name = folded.get(module, name)
    if found := _outputs(graph, name):
        if len(found) == 1:
            return found[0]
        raise SettingError(f"{name} has {len(found)} outputs that others read: choose other feature_layers")
    merged = " (its batch norm was merged)" if isinstance(module, nn.Identity) else ""
    raise SettingError(f"the captured network computes no {name} of its own{merged}: choose other feature_layers")


def _outputs(graph: fx.Graph, name: str) -> list[fx.Node]:
    """The tensors that the module `name` makes and others read, in front of their quantizers."""
    inside = {n for n in graph.nodes if name in _modules_around(n)}
    users = {n: [u for user in n.users for u in (user.users if _is_slot(user) else [user])] for n in inside}
    found = [n for n in inside if not _is_slot(n) and any(u not in inside for u in users[n])]
    return sorted((n for n in found if isinstance(n.meta.get("val"), Tensor)), key=list(graph.nodes).index)


def _modules_around(node: fx.Node) -> set[str]:
    """The dotted names of the modules whose forward a node belongs to."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    own = {str(node.target)} if node.op == "call_module" else set()
    return {value[0].split("@")[0] for value in stack} | own


def _is_slot(node: fx.Node) -> bool:
    return node.op == "call_module" and str(node.target).startswith(f"{SLOTS}.")


def _before_slot(node: fx.Node) -> fx.Node:
    while _is_slot(node):
        node = node.all_input_nodes[0]
    return node


def _blocks(modules: dict[str, nn.Module]) -> list[str]:
    """See `feature_places`."""
    found: list[list[str]] = [[], []]
    for name, module in modules.items():
        parent = modules[name.rpartition(".")[0]]
        listed = isinstance(parent, (nn.Sequential, nn.ModuleList)) and not isinstance(module, nn.Sequential)
        if name and (listed or parent is modules[""]) and sum(isinstance(m, WEIGHTED) for m in module.modules()) > 1:
            found[0 if listed else 1].append(name)
    return found[0] or found[1]


def _has_one_output(model: nn.Module, name: str) -> bool:
    return not isinstance(model, fx.GraphModule) or len(_outputs(model.graph, name)) == 1


def _user_names(modules: dict[str, nn.Module]) -> list[str]:
    """The names of the network's own modules."""
    return [name for name in modules if name and SLOTS not in name and "weight_slot" not in name]

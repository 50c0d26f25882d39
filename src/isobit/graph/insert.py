"""Insertion: put slots with quantizers where the plan says."""

import re
from dataclasses import dataclass, replace

from torch import fx, nn

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerGroup
from isobit.core.scheme import Scheme
from isobit.graph.placement import Plan
from isobit.graph.rules import Rules
from isobit.graph.slots import Slot, give_weight_slot
from isobit.graph.tensors import Tensors, tensors_of
from isobit.quantizers import Lsq, QuantizerSettings, Role
from isobit.targets import Profile

SLOTS = "activation_slots"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a prepared model knows about itself."""

    profile: Profile
    plan: Plan
    rules: Rules


def insert(
    model: fx.GraphModule,
    plan: Plan,
    *,
    profile: Profile,
    rules: Rules | None = None,
    weight: QuantizerSettings | None,
    activation: QuantizerSettings | None,
    stochastic_rounding: bool = False,
) -> tuple[str, ...]:
    """Insert the plan's quantizers into a captured model, in place. They pass values through until calibrated.

    Without settings for weights, or for activations, these stay in float. With `stochastic_rounding` all round at
    random in training; raises UnsupportedError for a quantizer that cannot.
    Where an algorithm has no form for the width of the first and last layer, LSQ quantizes it there: the result says
    where. Raises UnsupportedError for a scheme that an algorithm cannot express anywhere else.
    """
    if SLOTS in model._modules:
        raise SettingError("this model is prepared already: start again from the float model")
    for settings in filter(None, (weight, activation) if stochastic_rounding else ()):
        _check_draws(settings)
    holder = nn.ModuleDict()
    model.add_module(SLOTS, holder)
    nodes = {node.name: node for node in model.graph.nodes}
    tensors, notes = tensors_of(model), []
    plan = _without_float(plan, weights=weight is not None, activations=activation is not None)
    rules = rules or Rules()
    for point in plan.activations:
        assert activation is not None
        key = _key(point.name, holder)
        quantizer, note = _built(activation, point.scheme, "activation", point.name, profile, rules)
        notes.append(note)
        holder[key] = Slot(quantizer, name=point.name, stochastic=stochastic_rounding)
        for tensor in point.tensors:
            float_readers = {nodes[reader] for name, reader in plan.reads_float if name == tensor}
            _splice(tensors, nodes[tensor], f"{SLOTS}.{key}", float_readers)
    for place in plan.weights:
        assert weight is not None
        quantizer, note = _built(weight, place.scheme, "weight", place.name, profile, rules)
        notes.append(note)
        slot = Slot(quantizer, name=f"{place.name}.weight", stochastic=stochastic_rounding)
        give_weight_slot(model.get_submodule(place.name), slot)
    notes.append(_wider(plan, profile))
    model.meta["preparation"] = Preparation(profile=profile, plan=plan, rules=rules)
    model.graph.lint()
    model.recompile()
    return tuple(filter(None, notes))


def _wider(plan: Plan, profile: Profile) -> str:
    """What to say about weights that take more bits in a file than they have."""
    grouped = {p.scheme.bits for p in plan.weights if isinstance(p.scheme.granularity, PerGroup)}
    if not (wider := sorted(grouped - set(profile.form.widths))):
        return ""
    widths = " or ".join(map(str, profile.form.widths))
    return f"weights of {', '.join(map(str, wider))} bits take {widths} in a file for {profile.name}: the next larger"


def _check_draws(settings: QuantizerSettings) -> None:
    if not getattr(settings, "stochastic_rounding", False):
        raise UnsupportedError(
            f"{type(settings).__name__} has no stochastic rounding: it does not round to even steps in training. Set "
            "stochastic_rounding to false, or use such a quantizer: `lsq`, `pact`, `dorefa`, `fixed`"
        )


def _without_float(plan: Plan, *, weights: bool, activations: bool) -> Plan:
    """The plan without the points that stay in float."""
    if not activations:
        plan = replace(plan, activations=(), reads_float=frozenset())
    return plan if weights else replace(plan, weights=())


def _built(
    settings: QuantizerSettings, scheme: Scheme, role: Role, name: str, profile: Profile, rules: Rules
) -> tuple[nn.Module, str]:
    """The quantizer of one point, and what to say about it."""
    try:
        return settings.build(scheme, role=role), ""
    except UnsupportedError as error:
        usual = (profile.weight if role == "weight" else profile.activation).bits
        if scheme.bits == usual or scheme.bits != profile.edge_bits or rules.bits_of(name):
            raise UnsupportedError(f"the {role} at {name}: {error}") from error
        return Lsq().build(scheme, role=role), f"{name}: LSQ quantizes the {role} at {scheme.bits} bits: {error}"


def preparation(model: nn.Module) -> Preparation:
    """What `insert` noted; raises SettingError for a model that was never prepared."""
    found = model.meta.get("preparation") if isinstance(model, fx.GraphModule) else None
    if not isinstance(found, Preparation):
        raise SettingError("this model has no quantizers: use isobit.quantize or isobit.prepare first")
    return found


def slots(model: nn.Module) -> list[Slot]:
    """All slots, activations before weights."""
    found = [m for m in model.modules() if isinstance(m, Slot)]
    holder = model._modules.get(SLOTS)
    first = set(holder.modules()) if holder is not None else set()
    return [s for s in found if s in first] + [s for s in found if s not in first]


def _splice(tensors: Tensors, tensor: fx.Node, target: str, float_readers: set[fx.Node]) -> None:
    """Let the readers of a tensor read it through the slot, but for `float_readers`.

    Where a dropout or identity leads to readers of both sorts, it stays in front of the slot.
    """
    quantized, mixed = [], []
    for user in tensor.users:
        behind = tensors.readers(user) if tensors.transparent(user) else [user]
        in_float = [reader in float_readers for reader in behind]
        if not any(in_float):
            quantized.append(user)
        elif not all(in_float):
            mixed.append(user)
    for user in mixed:
        _splice(tensors, user, target, float_readers)
    if not quantized:
        return
    with tensors.graph.inserting_after(tensor):
        slot = tensors.graph.call_module(target, (tensor,))
    slot.meta = {key: tensor.meta[key] for key in ("val", "nn_module_stack") if key in tensor.meta}
    for user in quantized:
        user.replace_input_with(tensor, slot)


def _key(name: str, taken: nn.ModuleDict) -> str:
    key = base = re.sub(r"\W", "_", name)
    count = 2
    while key in taken:
        key, count = f"{base}_{count}", count + 1
    return key

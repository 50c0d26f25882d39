"""Placement: which tensors and weights of a network carry a quantizer, computed from a target's profile."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from torch import fx, nn

from isobit.core.errors import SettingError, UnsupportedError
from isobit.core.granularity import PerChannel, PerGroup
from isobit.core.records import FloatOp
from isobit.core.scheme import Scheme
from isobit.graph.names import names
from isobit.graph.rules import Rules
from isobit.graph.slots import QUANTIZED_LAYERS
from isobit.graph.tensors import PASSIVE, Tensors, is_float_tensor, tensors_of
from isobit.targets import Profile
from isobit.targets.profile import in_words

STRUCTURAL = PASSIVE | {"input", "output", "constant", "shape", "getitem"}
"""Kinds that compute nothing."""

REARRANGES = frozenset({"reshape", "transpose", "slice"})
"""Kinds that give the same values another shape or place."""

WEIGHTED = frozenset({"conv", "conv_transpose", "linear"})

HOLDS_WEIGHTS = WEIGHTED | {"embedding"}
"""Kinds most of whose bytes are weights."""


@dataclass(frozen=True, kw_only=True)
class ActivationPoint:
    """One quantizer of activations: the tensors that share it, by the names of their nodes."""

    name: str
    tensors: tuple[str, ...]
    scheme: Scheme


@dataclass(frozen=True, kw_only=True)
class WeightPoint:
    """The quantizer of one module's weight."""

    name: str
    scheme: Scheme


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where quantizers go. `reads_float` holds the (tensor, reader) pairs that keep the float value."""

    activations: tuple[ActivationPoint, ...]
    weights: tuple[WeightPoint, ...]
    float_ops: tuple[FloatOp, ...]
    reads_float: frozenset[tuple[str, str]] = frozenset()

    def nodes(self) -> tuple[str, ...]:
        """One line per quantizer, for golden files."""
        acts = [f"activation {p.name}: {p.scheme}" + _shared(p) for p in self.activations]
        weights = [f"weight {p.name}: {p.scheme}" for p in self.weights]
        floats = [f"float {f.name} ({f.op}): {f.reason}" for f in self.float_ops]
        return (*acts, *weights, *floats)


def place(model: fx.GraphModule, profile: Profile, rules: Rules | None = None) -> Plan:
    """Compute the placement for a captured network.

    Raises UnknownNameError for a rule that matches no layer, UnsupportedError where a rule demands what the
    target cannot do or nothing at all can be quantized.
    """
    return _Placer(model, profile, rules or Rules()).plan()


class _Placer:
    """The state of one placement: sets of tensors, filled step by step."""

    def __init__(self, model: fx.GraphModule, profile: Profile, rules: Rules) -> None:
        self.model, self.profile, self.rules = model, profile, rules
        self.tensors: Tensors = tensors_of(model)
        self.names = names(model.graph)
        self.order = {node: i for i, node in enumerate(model.graph.nodes)}
        self.kept: dict[fx.Node, str] = {}
        self.group: dict[fx.Node, fx.Node] = {}

    def plan(self) -> Plan:
        self.apply_rules()
        self.internal = {t for t in self.order if self.is_internal(t)}
        wanted = {t for t in self.order if is_float_tensor(t) and self.is_wanted(t)}
        self.spread_shared(wanted)
        if not wanted:
            raise UnsupportedError(f"{self.profile.name} can quantize no op of this network{self.why_none()}")
        quantizes = self.profile.ranges != "none"
        reads_float = self.float_readers(wanted) if quantizes and not self.profile.placement.every_consumer else set()
        return Plan(
            activations=self.activation_points(wanted) if quantizes else (),
            weights=self.weight_points(wanted),
            float_ops=tuple(self.float_ops(wanted)),
            reads_float=frozenset((t.name, r.name) for t, r in reads_float),
        )

    # -- rules

    def apply_rules(self) -> None:
        compute = {n: self.names[n] for n in self.order if self.kind(n) not in STRUCTURAL}
        self.rules.check(compute.values())
        kinds = self.profile.placement.kinds
        for node, name in compute.items():
            if pattern := self.rules.kept_by(name):
                self.kept[node] = pattern
                continue
            for bits in self.rules.bits_of(name) or ():
                if bits not in self.profile.widths:
                    widths = in_words(self.profile.widths)
                    raise SettingError(f"{self.profile.name} computes with {widths} bits: {name!r} cannot have {bits}")
            if pattern := self.rules.forced_by(name):
                start = f"the rule {pattern!r} demands that {name} is quantized, but "
                if self.kind(node) not in kinds | self.fusable():
                    raise UnsupportedError(
                        f"{start}{self.profile.name} has no integer {self.kind(node)}; "
                        f"it can quantize {', '.join(sorted(kinds))}"
                    )
                if not self.computes(node):
                    raise UnsupportedError(start + self.no_weight(node))

    def fusable(self) -> set[str]:
        return {kind for pair in self.profile.fusions for kind in pair}

    # -- which tensors

    def is_internal(self, tensor: fx.Node) -> bool:
        """Whether an engine computes a tensor and its only reader as one op."""
        reader = self.tensors.only_reader(tensor)
        if reader is None or tensor in self.kept or reader in self.kept:
            return False
        if (self.kind(tensor), self.kind(reader)) in self.profile.fusions:
            return self.kind(tensor) != "batch_norm" or self.follows_conv(tensor)
        if not self.profile.placement.conv_feeds_add or self.kind(reader) != "add":
            return False
        return self.fused_operand(reader) is tensor

    def fused_operand(self, add: fx.Node) -> fx.Node | None:
        """The operand that an engine takes from the convolution's accumulator: the first that can be; the other one,
        also where it comes from a convolution, is the residual."""
        operands = [self.tensors.source(t) for t in self.tensors.inputs(add)]
        if len(operands) != 2:
            return None
        fits = (
            t for t in operands if self.follows_conv(t) and t not in self.kept and self.tensors.only_reader(t) is add
        )
        return next(fits, None)

    def follows_conv(self, tensor: fx.Node) -> bool:
        if self.kind(tensor) == "batch_norm":
            tensor = self.tensors.inputs(tensor)[0]
        return self.kind(tensor) in WEIGHTED and tensor not in self.kept

    def is_wanted(self, tensor: fx.Node) -> bool:
        if tensor in self.internal or self.kind(tensor) in PASSIVE or self.tensors.absorbed(tensor):
            return False
        if self.added_in_float(tensor):
            return False
        readers = self.tensors.readers(tensor)
        placement = self.profile.placement
        if any(self.kind(r) in placement.inputs and self.computes(r) for r in readers):
            return True
        if self.kind(self.head(tensor)) not in placement.outputs or not self.computes(self.head(tensor)):
            return False
        if not placement.float_readers and readers and not self.reaches_integers(tensor):
            return False
        only_output = all(r.op == "output" for r in readers)
        return placement.network_output or not only_output

    def reaches_integers(self, tensor: fx.Node) -> bool:
        """Whether an op on integers, or an output of the network, reads a tensor, also behind ops that move it."""
        placement = self.profile.placement
        return any(
            reader.op == "output"
            or (self.kind(reader) in placement.inputs and self.computes(reader))
            or (self.kind(reader) in placement.shared | {"getitem"} and self.reaches_integers(reader))
            for reader in self.tensors.readers(tensor)
        )

    def added_in_float(self, tensor: fx.Node) -> bool:
        """Whether a tensor is a constant that the target adds without quantizing it."""
        if self.profile.placement.constant_operands or tensor not in self.constants:
            return False
        return all(self.kind(reader) == "add" for reader in self.tensors.readers(tensor))

    @cached_property
    def constants(self) -> set[fx.Node]:
        """The tensors that no input of the network reaches."""
        found: set[fx.Node] = set()
        for node in self.order:
            if node.op not in ("placeholder", "output") and all(source in found for source in node.all_input_nodes):
                found.add(node)
        return found

    def head(self, tensor: fx.Node) -> fx.Node:
        """The op that a fused chain starts with."""
        for source in self.tensors.inputs(tensor):
            if self.tensors.source(source) in self.internal and self.kind(tensor) != "add":
                return self.head(self.tensors.source(source))
        return tensor

    def computes(self, node: fx.Node) -> bool:
        """Whether the target may run this op on integers: not kept in float, and its weight can be quantized."""
        return node not in self.kept and (self.kind(node) not in WEIGHTED or not self.no_weight(node))

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module of an op with weights, None where its weight cannot be quantized."""
        module = self.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        return module if isinstance(module, tuple(QUANTIZED_LAYERS)) else None

    def spread_shared(self, wanted: set[fx.Node]) -> None:
        """Ops that move integers keep the scale of their input: their output joins its group."""
        for node in self.order:
            if self.kind(node) not in self.profile.placement.shared and self.kind(node) != "getitem":
                continue
            if node in self.kept or not is_float_tensor(node) or self.tensors.absorbed(node):
                continue
            sources = [self.tensors.source(t) for t in self.tensors.inputs(node)]
            if not any(s in wanted for s in sources) or any(s in self.internal for s in sources):
                continue
            wanted.update(sources)
            wanted.add(node)
            for source in sources:
                self.group[self.root(node)] = self.root(source)

    def root(self, tensor: fx.Node) -> fx.Node:
        while tensor in self.group and self.group[tensor] is not tensor:
            tensor = self.group[tensor]
        return tensor

    def float_readers(self, wanted: set[fx.Node]) -> set[tuple[fx.Node, fx.Node]]:
        kinds = self.profile.placement.inputs
        return {
            (t, r) for t in wanted for r in self.tensors.readers(t) if self.kind(r) not in kinds or not self.computes(r)
        }

    # -- schemes

    @cached_property
    def edges(self) -> set[fx.Node]:
        """The first and the last op with weights."""
        kinds = WEIGHTED & self.profile.placement.kinds
        weighted = [n for n in self.order if self.kind(n) in kinds and self.computes(n)]
        return {weighted[0], weighted[-1]} if weighted and self.profile.edge_bits else set()

    def bits(self, node: fx.Node) -> tuple[int, int]:
        """(weight, activation) bits of an op: a rule, else the edge's, else the profile's."""
        default = (self.profile.weight.bits, self.profile.activation.bits)
        if node in self.edges and self.profile.edge_bits:
            default = (max(self.profile.edge_bits, default[0]), max(self.profile.edge_bits, default[1]))
        found = self.rules.bits_of(self.names[node]) or default
        return found if self.profile.ranges == "calibrated" else (found[0], self.profile.activation.bits)

    def activation_points(self, wanted: set[fx.Node]) -> tuple[ActivationPoint, ...]:
        members: dict[fx.Node, list[fx.Node]] = {}
        for tensor in sorted(wanted, key=self.order.__getitem__):
            members.setdefault(self.root(tensor), []).append(tensor)
        return tuple(
            ActivationPoint(
                name=self.names[group[0]],
                tensors=tuple(t.name for t in group),
                scheme=replace(self.profile.activation, bits=self.group_bits(group)),
            )
            for group in members.values()
        )

    def group_bits(self, group: list[fx.Node]) -> int:
        """What a rule for an op that makes one of the tensors says; else the most that readers ask for.

        Readers without weights ask by a rule alone.
        """
        if self.profile.ranges != "calibrated":
            return self.profile.activation.bits
        if found := [bits[1] for bits in map(self.ruled, group) if bits is not None]:
            return max(found)
        readers = [r for t in group for r in self.tensors.readers(t)]
        asked = [self.bits(r)[1] for r in readers if self.kind(r) in WEIGHTED and self.computes(r)]
        asked += [bits[1] for bits in map(self.ruled, readers) if bits is not None]
        if asked:
            return max(asked)
        if any(r.op == "output" for r in readers) and self.profile.edge_bits:
            return max(self.profile.edge_bits, self.profile.activation.bits)
        return self.profile.activation.bits

    def ruled(self, node: fx.Node) -> tuple[int, int] | None:
        """The widths of a rule for an op without weights."""
        return None if self.kind(node) in WEIGHTED or node.op == "output" else self.rules.bits_of(self.names[node])

    def weight_points(self, wanted: set[fx.Node]) -> tuple[WeightPoint, ...]:
        found: dict[str, WeightPoint] = {}
        for node in self.order:
            if self.kind(node) not in WEIGHTED or not self.computes(node) or not self.reads_integers(node, wanted):
                continue
            if self.kind(node) not in self.profile.placement.kinds:
                continue
            scheme = self.profile.weight_scheme(self.bits(node)[0])
            if self.kind(node) == "conv_transpose" and isinstance(scheme.granularity, PerChannel):
                scheme = replace(scheme, granularity=PerChannel(1))  # its weight is (in, out / groups, …)
            found.setdefault(str(node.target), WeightPoint(name=str(node.target), scheme=scheme))
        return tuple(found.values())

    # -- what stays in float

    def reads_integers(self, node: fx.Node, wanted: Iterable[fx.Node]) -> bool:
        sources = [self.tensors.source(t) for t in self.tensors.inputs(node)]
        return bool(sources) and all(s in wanted or s in self.internal or self.added_in_float(s) for s in sources)

    def float_ops(self, wanted: set[fx.Node]) -> Iterable[FloatOp]:
        integer: set[fx.Node] = set()
        for node in self.order:
            kind = self.kind(node)
            if kind in STRUCTURAL or not is_float_tensor(node) or self.tensors.absorbed(node):
                continue
            head = self.head(node)
            if head is not node and head in integer:
                integer.add(node)
                continue
            if reason := self.float_reason(node, wanted):
                if self.profile.ranges == "none" and kind not in HOLDS_WEIGHTS:
                    continue  # the target's activations are in float, and so is what computes with them alone
                if kind in REARRANGES and node not in self.kept:
                    continue  # it computes nothing: what it moves is in float already, and that op is named
                yield FloatOp(name=self.names[node], op=kind, reason=reason)
            else:
                integer.add(node)

    def float_reason(self, node: fx.Node, wanted: set[fx.Node]) -> str:
        kind, target = self.kind(node), self.profile.name
        if node in self.kept:
            return f"kept in float by the rule {self.kept[node]!r}"
        if kind not in self.profile.placement.kinds:
            return f"{target} quantizes no {kind}"
        if not self.computes(node):
            return self.no_weight(node)
        if not self.reads_integers(node, wanted):
            return "an input of it is in float"
        return ""

    def no_weight(self, node: fx.Node) -> str:
        """Why the weight of an op cannot be quantized; empty where it can."""
        if node.op != "call_module":
            return "its weight is not a parameter of a module"
        module, granularity = self.module(node), self.profile.weight.granularity
        if module is None:
            return f"isobit quantizes no {type(self.model.get_submodule(str(node.target))).__name__}"
        if (
            isinstance(granularity, PerGroup)
            and isinstance(module, nn.Linear)
            and module.in_features % granularity.size
        ):
            size = granularity.size
            return f"its {module.in_features} inputs are no multiple of the {size} of a group: give another group_size"
        return ""

    def why_none(self) -> str:
        """What keeps the layers in float that the target has a kind for; else where the kinds are listed."""
        layers = [n for n in self.order if self.kind(n) in WEIGHTED & self.profile.placement.kinds]
        found = next((f": {self.names[n]}: {why}" for n in layers if (why := self.no_weight(n))), "")
        return found or ": see `isobit targets`"

    def kind(self, node: fx.Node) -> str:
        return self.tensors.kinds[node]


def _shared(point: ActivationPoint) -> str:
    return f" (shared by {len(point.tensors)} tensors)" if len(point.tensors) > 1 else ""

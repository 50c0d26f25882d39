"""A recipe: everything that fixes the result of a quantization, as plain values with names in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from isobit.algorithms.calibration import Observation
from isobit.algorithms.post_training import PostTraining, Preparing
from isobit.core.errors import SettingError
from isobit.core.granularity import PerTensor
from isobit.core.scheme import Scheme
from isobit.graph.rules import Rules
from isobit.observers import OBSERVERS, ObserverSettings
from isobit.quantizers import QUANTIZERS, QuantizerSettings, Role
from isobit.recipes.methods import METHODS, Method
from isobit.recipes.table import look_up
from isobit.targets import TARGETS, Profile

FORMAT = 1

FLOAT_BITS = 32
"""The width that leaves weights or activations in float."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What `isobit.quantize` does, in the form that recipe files and results hold.

    Bits are the target's own where they are None; 32 leaves all weights, or all activations, in float. An observer
    that is None is the quantizer's own; for `fixed` that is `min_max` at 8 bits and where each channel has a scale,
    and `mse` for one scale of fewer bits, where clipping the tails pays.
    `method` names both quantizers at once, as `isobit.recipes.methods` has them.
    `layer_bits`, `keep_float` and `quantize` are rules by layer name with `*` and `?`. `bn_fold` is the strategy of
    batch-norm folding, -1 to 4 (`isobit.graph.folding`), the target's where it is None; without `bn_synchronized` each
    process has batch statistics of its own (4*).
    """

    target: str
    format: int = FORMAT
    weight_bits: int | None = None
    activation_bits: int | None = None
    method: str | None = None
    weight_quantizer: str = "fixed"
    activation_quantizer: str = "fixed"
    weight_observer: str | None = None
    activation_observer: str | None = None
    observers: Mapping[str, str] = field(default_factory=dict)
    keep_float: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()
    layer_bits: Mapping[str, int | tuple[int, int]] = field(default_factory=dict)
    bn_fold: int | None = None
    bn_synchronized: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise SettingError(f"this isobit reads recipes of format {FORMAT}, this one has format {self.format}")
        if self.method is not None and (self.weight_quantizer, self.activation_quantizer) != ("fixed", "fixed"):
            raise SettingError("give either method, or weight_quantizer and activation_quantizer, not both")
        if self.weight_bits == self.activation_bits == FLOAT_BITS:
            raise SettingError("32 bits for weights and activations is the float network: nothing would be quantized")

    def profile(self) -> Profile:
        """The target at the recipe's widths."""
        profile = look_up("target", TARGETS, self.target)
        weight, activation = (None if bits == FLOAT_BITS else bits for bits in (self.weight_bits, self.activation_bits))
        return profile.with_bits(weight=weight, activation=activation)

    def rules(self) -> Rules:
        """The exceptions by layer."""
        return Rules(keep_float=self.keep_float, quantize=self.quantize, bits=self.layer_bits)

    def preparing(self) -> Preparing:
        """The settings of the preparation."""
        names = Method(self.weight_quantizer, self.activation_quantizer)
        if self.method is not None:
            names = look_up("method", METHODS, self.method)
        weight = look_up("quantizer", QUANTIZERS, names.weight)()
        activation = look_up("quantizer", QUANTIZERS, names.activation)()
        return Preparing(
            weight=None if self.weight_bits == FLOAT_BITS else weight,
            activation=None if self.activation_bits == FLOAT_BITS else activation,
            rules=self.rules(),
            bn_fold=self.bn_fold,
            bn_synchronized=self.bn_synchronized,
        )

    def observation(self) -> Observation:
        """The observers that find the first ranges."""
        profile, preparing = self.profile(), self.preparing()
        return Observation(
            weight=_observer(self.weight_observer, preparing.weight, profile.weight, "weight"),
            activation=_observer(self.activation_observer, preparing.activation, profile.activation, "activation"),
            by_name={name: look_up("observer", OBSERVERS, value)() for name, value in self.observers.items()},
        )

    def post_training(self) -> PostTraining:
        """The settings of post-training quantization."""
        return PostTraining(observation=self.observation(), preparing=self.preparing(), seed=self.seed)


def _observer(name: str | None, quantizer: QuantizerSettings | None, scheme: Scheme, role: Role) -> ObserverSettings:
    if name is None and quantizer is None:
        name = "min_max"  # never asked
    if name is None:
        assert quantizer is not None
        name = getattr(quantizer, "weight_observer", None) if role == "weight" else None
        name = name or quantizer.observer
        if name == "min_max" and scheme.bits < 8 and isinstance(scheme.granularity, PerTensor):
            name = "mse"
    found: ObserverSettings = look_up("observer", OBSERVERS, name)()
    return found

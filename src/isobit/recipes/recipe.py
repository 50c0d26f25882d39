"""A recipe: everything that fixes the result of a quantization, as plain values with names in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from isobit.algorithms import RECONSTRUCTIONS
from isobit.algorithms.bias_correction import BiasCorrection
from isobit.algorithms.calibration import Observation
from isobit.algorithms.channel_repair import ChannelRepair
from isobit.algorithms.lapq import Lapq
from isobit.algorithms.post_training import PostTraining, Preparing
from isobit.core.errors import SettingError
from isobit.core.granularity import PerGroup, PerTensor
from isobit.core.grid import Uniform
from isobit.core.scheme import PowerOfTwo, Scheme
from isobit.graph.rules import Rules
from isobit.observers import OBSERVERS, ObserverSettings
from isobit.quantizers import QUANTIZERS, Dynamic, QuantizerSettings, Role
from isobit.recipes.choice import Choice, as_choice, chosen, name_of
from isobit.recipes.codec import decode
from isobit.recipes.methods import METHODS
from isobit.recipes.table import look_up
from isobit.targets import TARGETS, Profile

FORMAT = 1

FLOAT_BITS = 32
"""The width that leaves weights or activations in float."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What `isobit.quantize` does, in the form that recipe files and results hold.

    Bits are the target's own where they are None; 32 leaves all weights, or all activations, in float. An observer
    that is None is the quantizer's own; for `fixed` that is `min_max` at 8 bits and per group, and `mse` at fewer,
    where clipping the tails pays, and for powers of two, the nearest of which may clip a lot.
    `method` names both quantizers at once, as `isobit.recipes.methods` has them. A quantizer or an observer is a name,
    or a table of its settings that holds the name: `{ name = "slb", begin = 0.2 }`.
    `layer_bits`, `keep_float` and `quantize` are rules by layer name with `*` and `?`. `bn_fold` is the strategy of
    batch-norm folding, -1 to 4 (`isobit.graph.folding`), the target's where it is None; without `bn_synchronized` each
    process has batch statistics of its own (4*). With `stochastic_rounding` quantizers with even steps, and the
    logarithmic one, round at random in training.
    `equalize` evens out the ranges of channels over neighbouring layers; None does it where quantization without
    training meets one scale per weight. `absorb_bias` moves what a channel always has into the next bias,
    `split_channels` is the share of channels to split where weights are largest, `smooth` the α by which large
    inputs of linear layers move into their weights (SmoothQuant). `joint_ranges` searches the steps of all layers
    together on the loss (LAPQ). `bias_correction` gives back to biases what rounding takes from the mean of a layer's
    output; None does it where there are no data and nothing is reconstructed. `reconstruction` is `adaround`, `brecq`,
    `qdrop` or `gptq`, or a table of its settings: roundings are then found from the calibration data; None is `gptq`
    for weights of 8 bits and less where there are data, and `none` rounds to nearest. `avoid_saturation` gives larger
    steps to the channels whose integers can leave a register on some machine, and to no other; None does it where
    `exact` is asked for, which chooses scales with which all engines and the simulation round alike.
    `group_size` weights share a scale, on targets with scales per group; with `symmetric_weights` no zero point goes
    with it, nor with a channel's below 8 bits where the target has one.
    """

    target: str
    format: int = FORMAT
    weight_bits: int | None = None
    activation_bits: int | None = None
    method: str | None = None
    weight_quantizer: Choice = "fixed"
    activation_quantizer: Choice = "fixed"
    weight_observer: Choice | None = None
    activation_observer: Choice | None = None
    observers: Mapping[str, Choice] = field(default_factory=dict)
    keep_float: tuple[str, ...] = ()
    quantize: tuple[str, ...] = ()
    layer_bits: Mapping[str, int | tuple[int, int]] = field(default_factory=dict)
    bn_fold: int | None = None
    bn_synchronized: bool = True
    stochastic_rounding: bool = False
    equalize: bool | None = None
    absorb_bias: bool = False
    split_channels: float = 0.0
    smooth: float | None = None
    joint_ranges: bool = False
    bias_correction: bool | None = None
    reconstruction: Choice | None = None
    avoid_saturation: bool | None = None
    exact: bool = False
    group_size: int | None = None
    symmetric_weights: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise SettingError(f"this isobit reads recipes of format {FORMAT}, this one has format {self.format}")
        if self.method is not None and (self.weight_quantizer, self.activation_quantizer) != ("fixed", "fixed"):
            raise SettingError("give either method, or weight_quantizer and activation_quantizer, not both")
        if self.weight_bits == self.activation_bits == FLOAT_BITS:
            raise SettingError("32 bits for weights and activations is the float network: nothing would be quantized")

    def profile(self) -> Profile:
        """The target at the recipe's widths; weights whose quantizer learns are symmetric: a zero point would not."""
        profile = look_up("target", TARGETS, self.target)
        if self.method is not None or name_of(self.weight_quantizer) != "fixed":
            profile = replace(profile, offset_weights=False)
        weight, activation = (None if bits == FLOAT_BITS else bits for bits in (self.weight_bits, self.activation_bits))
        self._check_ranges(profile)
        profile = profile.with_groups(size=self.group_size, symmetric=self.symmetric_weights)
        return profile.with_bits(weight=weight, activation=activation)

    def _check_ranges(self, profile: Profile) -> None:
        """Raise SettingError for settings of activations that a target without calibrated ranges does not have."""
        if profile.ranges == "calibrated":
            return
        if profile.ranges == "cast":
            self._check_cast(profile)
            return
        if profile.ranges == "none" and self.weight_bits == FLOAT_BITS:
            raise SettingError(f"{profile.name} has nothing but weights: at 32 bits nothing would be quantized")
        allowed = (None, FLOAT_BITS) if profile.ranges == "none" else (None, FLOAT_BITS, profile.activation.bits)
        both = [pattern for pattern, bits in self.layer_bits.items() if not isinstance(bits, int)]
        if both:
            raise SettingError(f"{profile.name} calibrates no activations: layer_bits for {both[0]!r} takes one width")
        if self.activation_bits not in allowed:
            does = "leaves activations in float" if profile.ranges == "none" else "has bytes as activations"
            raise SettingError(
                f"{profile.name} {does}: give weight_bits alone, not {self.activation_bits} bits for them"
            )
        if self.activation_quantizer not in ("fixed", "dynamic") or self.activation_observer is not None:
            raise SettingError(
                f"{profile.name} calibrates no activations: leave activation_quantizer and activation_observer out"
            )

    def _check_cast(self, profile: Profile) -> None:
        """Raise SettingError for what asks for a scale, where floats are cast."""
        quantizers = (name_of(self.weight_quantizer), name_of(self.activation_quantizer))
        asked = {
            "method": self.method is not None,
            "weight_quantizer": quantizers[0] != "fixed",
            "activation_quantizer": quantizers[1] != "fixed",
            "weight_observer": self.weight_observer is not None,
            "activation_observer": self.activation_observer is not None,
            "observers": bool(self.observers),
            "joint_ranges": bool(self.joint_ranges),
            "reconstruction": self.reconstruction not in (None, "none"),
            "equalize": bool(self.equalize),
        }
        if found := [key for key, given in asked.items() if given]:
            raise SettingError(f"{profile.name} casts to 16-bit floats, which have no scale: leave {found[0]} out")

    def rules(self) -> Rules:
        """The exceptions by layer."""
        return Rules(keep_float=self.keep_float, quantize=self.quantize, bits=self.layer_bits)

    def preparing(self, *, trains: bool = True) -> Preparing:
        """The settings of the preparation, for training or for post-training quantization."""
        choices: tuple[Choice, Choice] = (self.weight_quantizer, self.activation_quantizer)
        if self.method is not None:
            method = look_up("method", METHODS, self.method)
            choices = (method.weight, method.activation)
        weight = chosen("quantizer", QUANTIZERS, choices[0], key="weight_quantizer")
        activation = chosen("quantizer", QUANTIZERS, choices[1], key="activation_quantizer")
        ranges = self.profile().ranges
        if ranges == "dynamic":
            activation = Dynamic()
        return Preparing(
            weight=None if self.weight_bits == FLOAT_BITS else weight,
            activation=None if self.activation_bits == FLOAT_BITS or ranges == "none" else activation,
            rules=self.rules(),
            bn_fold=self.bn_fold,
            bn_synchronized=self.bn_synchronized,
            stochastic_rounding=self.stochastic_rounding,
            keep_rounding=self.exact,
            repair=ChannelRepair(
                equalize=self._equalizes(trains=trains),
                absorb_bias=self.absorb_bias,
                split_channels=self.split_channels,
                smooth=self.smooth,
            ),
        )

    def _equalizes(self, *, trains: bool) -> bool:
        if self.equalize is not None:
            return self.equalize
        profile = self.profile()
        one_scale = isinstance(profile.weight.granularity, PerTensor) and self.weight_bits != FLOAT_BITS
        scaled = one_scale and isinstance(profile.weight.grid, Uniform)
        return not trains and scaled and profile.fold_bn and self.bn_fold in (None, 0)

    def observation(self) -> Observation:
        """The observers that find the first ranges."""
        profile, preparing = self.profile(), self.preparing()
        return Observation(
            weight=_observer(self.weight_observer, preparing.weight, profile.weight, "weight"),
            activation=_observer(self.activation_observer, preparing.activation, profile.activation, "activation"),
            by_name={
                name: chosen("observer", OBSERVERS, value, key=f"observers.{name}")
                for name, value in self.observers.items()
            },
        )

    def post_training(self, *, without_data: bool = False) -> PostTraining:
        """The settings of post-training quantization."""
        self._check_exact()
        choice = self.reconstruction
        if choice is None:
            choice = "gptq" if self._rounds_weights() and not without_data else "none"
        corrects = self.bias_correction
        if corrects is None:
            corrects = without_data and choice == "none"
        return PostTraining(
            observation=self.observation(),
            preparing=self.preparing(trains=False),
            joint_ranges=Lapq() if self.joint_ranges else None,
            bias_correction=BiasCorrection() if corrects else None,
            reconstruction=None
            if choice == "none"
            else chosen("reconstruction", RECONSTRUCTIONS, choice, key="reconstruction"),
            reconstruction_asked=self.reconstruction is not None,
            avoid_saturation=self.exact if self.avoid_saturation is None else self.avoid_saturation,
            exact=self.exact,
            without_data=without_data,
            seed=self.seed,
        )

    def _check_exact(self) -> None:
        """Raise SettingError for `exact` where there are no fixed scales of even steps to choose."""
        quantizers = (name_of(self.weight_quantizer), name_of(self.activation_quantizer))
        fixed = (
            self.method is None
            and quantizers == ("fixed", "fixed")
            and FLOAT_BITS not in (self.weight_bits, self.activation_bits)
        )
        if self.exact and not (fixed and self.profile().ranges == "calibrated"):
            raise SettingError(
                "exact chooses calibrated scales: it takes `fixed` quantizers for weights and activations"
            )

    def _rounds_weights(self) -> bool:
        """Whether weights have 8 bits or fewer, calibrated ranges, and nothing that learns."""
        profile = self.profile()
        fixed = self.method is None and name_of(self.weight_quantizer) == "fixed"
        few = self.weight_bits != FLOAT_BITS and profile.weight.bits <= 8 and isinstance(profile.weight.grid, Uniform)
        return fixed and few and profile.ranges == "calibrated"


def recipe_of(*, target: str, bits: int | None = None, **settings: Any) -> Recipe:
    """The recipe of these settings, where `bits` are those of weights and activations both.

    Quantizers and observers may be given as their settings objects, `weight_quantizer=Slb(begin=0.2)`. Raises
    UnknownNameError for a key that a recipe does not have.
    """
    if bits is not None:
        clash = {"weight_bits", "activation_bits"} & settings.keys()
        if clash:
            raise SettingError(f"give either bits or {sorted(clash)[0]}, not both")
        settings |= widths(target, bits)
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items() if v is not None}
    for key, table in _TABLES.items():
        if is_dataclass(value := plain.get(key)):
            plain[key] = as_choice(value, table)
    return decode(Recipe, {"target": target, **plain})


def widths(target: str, bits: int) -> dict[str, int]:
    """The width of weights and activations both; of weights alone where the target calibrates no activations."""
    calibrates = look_up("target", TARGETS, target).ranges == "calibrated"
    return {"weight_bits": bits, "activation_bits": bits} if calibrates else {"weight_bits": bits}


_TABLES: dict[str, Mapping[str, Any]] = {
    "weight_quantizer": QUANTIZERS,
    "activation_quantizer": QUANTIZERS,
    "weight_observer": OBSERVERS,
    "activation_observer": OBSERVERS,
    "reconstruction": RECONSTRUCTIONS,
}


def _observer(
    choice: Choice | None, quantizer: QuantizerSettings | None, scheme: Scheme, role: Role
) -> ObserverSettings:
    if choice is None and quantizer is None:
        choice = "min_max"  # never asked
    if choice is None:
        assert quantizer is not None
        choice = getattr(quantizer, "weight_observer", None) if role == "weight" else None
        choice = choice or quantizer.observer
        few = scheme.bits < 8 and not isinstance(scheme.granularity, PerGroup)  # a group has few values, and no tails
        if choice == "min_max" and (few or isinstance(scheme.scale, PowerOfTwo)):
            choice = "mse"
    found: ObserverSettings = chosen("observer", OBSERVERS, choice, key=f"{role}_observer")
    return found

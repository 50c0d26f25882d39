"""Times on engines as plain records: of files, and of each layer at each width, which hardware-aware choices read."""

from dataclasses import dataclass

from isobit.core.errors import SettingError, UnknownNameError

FLOAT = (32, 32)
"""The widths of the float network."""


@dataclass(frozen=True, kw_only=True)
class FileTime:
    """A file on an engine at one batch size: median and 99th percentile of its runs in milliseconds.

    `throughput` is samples a second at the median, `speedup` the median of the first file over this one's, `in_float`
    how many ops the engine runs in float. Where it could not be measured, `refused` says why.
    """

    file: str
    engine: str
    engine_version: str
    instruction_set: str
    batch: int
    threads: int
    runs: int
    median_ms: float | None = None
    p99_ms: float | None = None
    throughput: float | None = None
    speedup: float | None = None
    in_float: int = 0
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """One layer alone at one width: the median in milliseconds.

    `in_float` are its ops that the engine runs in float in the whole network, `alone_in_float` those that it ran in
    float here alone: the network is faster then. `held` says that it was measured before and read from the cache. Where
    it could not be measured, `refused` says why.
    """

    weight_bits: int
    activation_bits: int
    ms: float | None
    in_float: tuple[str, ...] = ()
    alone_in_float: tuple[str, ...] = ()
    held: bool = False
    refused: str = ""


@dataclass(frozen=True, kw_only=True)
class LayerLatency:
    """A layer, `ops` that are computed with it, `what` it is in words, and its times; none at a width without it."""

    name: str
    ops: tuple[str, ...]
    what: str
    times: tuple[LayerTime, ...]


@dataclass(frozen=True, kw_only=True)
class NetworkTime:
    """The whole network at one width: its own median, and the sum of the medians of its layers, each alone."""

    weight_bits: int
    activation_bits: int
    ms: float
    layers_ms: float
    left_out: tuple[str, ...] = ()
    """Layers that could not be measured alone, which the sum lacks."""


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Measured times of all layers of a network for a target on an engine; `runs` are those of each median."""

    target: str
    engine: str
    engine_version: str
    instruction_set: str
    processor: str
    threads: int
    batch: int
    runs: int
    layers: tuple[LayerLatency, ...]
    network: tuple[NetworkTime, ...]

    def seconds(self, layer: str, weight_bits: int, activation_bits: int) -> float:
        """How long a layer takes alone at these widths; 32 and 32 is float.

        0 for an op that is computed with another one, whose time holds it, such as a ReLU behind a convolution. Raises
        UnknownNameError for a layer that the network does not have, SettingError for widths that were not measured.
        """
        found = self._time(layer, weight_bits, activation_bits)
        if found is None:
            return 0.0
        if found.ms is None:
            raise SettingError(f"{layer} could not be measured at W{weight_bits}A{activation_bits}: {found.refused}")
        return found.ms / 1e3

    def share(self, layer: str, weight_bits: int, activation_bits: int) -> float:
        """Seconds of a layer, scaled so that all layers make up the network: seconds · network / sum of layers.

        Where an engine has work to do at the borders of a layer alone, widths compare better so.
        """
        alone = self.seconds(layer, weight_bits, activation_bits)
        whole = self.whole(weight_bits, activation_bits)
        return alone * whole.ms / whole.layers_ms if whole.layers_ms else 0.0

    def whole(self, weight_bits: int, activation_bits: int) -> NetworkTime:
        """The network at these widths. Raises SettingError where they were not measured."""
        widths = (weight_bits, activation_bits)
        found = next((n for n in self.network if (n.weight_bits, n.activation_bits) == widths), None)
        if found is None:
            known = ", ".join(f"W{n.weight_bits}A{n.activation_bits}" for n in self.network)
            raise SettingError(f"the table has no times at W{weight_bits}A{activation_bits}, it has {known}")
        return found

    def in_float(self, layer: str, weight_bits: int, activation_bits: int) -> tuple[str, ...]:
        """The kinds of ops of a layer that the engine runs in float at these widths."""
        found = self._time(layer, weight_bits, activation_bits)
        return () if found is None else found.in_float

    def _time(self, layer: str, weight_bits: int, activation_bits: int) -> LayerTime | None:
        row = next((r for r in self.layers if layer == r.name or layer in r.ops), None)
        if row is None:
            raise UnknownNameError("layer", layer, [r.name for r in self.layers])
        whole = self.whole(weight_bits, activation_bits)
        widths = (whole.weight_bits, whole.activation_bits)
        return next((t for t in row.times if (t.weight_bits, t.activation_bits) == widths and layer == row.name), None)

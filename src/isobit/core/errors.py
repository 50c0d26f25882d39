"""The errors that isobit raises: each says what was wrong, where, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class IsobitError(Exception):
    """Any error that isobit raises on purpose. The command line prints its text and exits with `exit_code`."""

    exit_code = 1


class UnknownNameError(IsobitError):
    """A target, layer, observer, option or key that does not exist; the text names the nearest one that does."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "there is none with a similar name."
        listed = ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
        super().__init__(f"unknown {kind} {name!r}: {hint} Known: {listed}")
        self.kind, self.name, self.nearest = kind, name, near[0] if near else None


class SettingError(IsobitError):
    """A setting whose value cannot be used, such as 0 bits."""

    exit_code = 2


class ModelError(IsobitError):
    """A model that cannot be loaded: no such file or callable, or not an nn.Module."""

    exit_code = 3


class WeightsError(IsobitError):
    """Weights that do not fit the network, or a weight with NaN or Inf."""

    exit_code = 3


class CaptureError(IsobitError):
    """A network whose graph cannot be captured."""

    exit_code = 3


class CalibrationError(IsobitError):
    """Calibration data that is empty, of the wrong shape, not finite, or constant."""

    exit_code = 4


class UnsupportedError(IsobitError):
    """Something that the target, quantizer or exporter cannot express."""

    exit_code = 5


class ArtifactError(IsobitError):
    """A file that is truncated, foreign, or does not belong to the model."""

    exit_code = 6


class OutputError(IsobitError):
    """A place that cannot be written: read-only, full, or not there."""

    exit_code = 7


class EngineError(IsobitError):
    """An engine that is not installed, refuses the file, or fails while it runs."""

    exit_code = 8


class MissingExtraError(EngineError):
    """A package that an optional part needs and that is not installed; the text names the install command."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed. Install it with: pip install 'isobit[{extra}]'")
        self.extra = extra

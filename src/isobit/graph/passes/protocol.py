"""What a graph pass is: it says what it needs and guarantees, changes a model in place, and reports."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import fx


@dataclass(frozen=True, kw_only=True)
class PassReport:
    """What a pass changed, what it left alone and why, and the largest relative error that it measured."""

    changed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    largest_error: float = 0.0


@runtime_checkable
class Pass(Protocol):
    """A pass over a captured model."""

    @property
    def name(self) -> str:
        """Its key in `PASSES`."""

    @property
    def requires(self) -> str:
        """What has to hold before."""

    @property
    def ensures(self) -> str:
        """What holds afterwards."""

    def apply(self, model: fx.GraphModule) -> PassReport:
        """Change the model in place; a second run changes nothing."""

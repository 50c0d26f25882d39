"""How the tests of quantizers calibrate one."""

from typing import TypeVar

from torch import Tensor, nn

from isobit.observers import ObserverSettings

Q = TypeVar("Q", bound=nn.Module)


def observed(quantizer: Q, observer: ObserverSettings, x: Tensor) -> Q:
    """The quantizer, calibrated by an observer that saw x alone."""
    watching = observer.build(quantizer.scheme)  # type: ignore[arg-type]
    watching.see(x)
    quantizer.calibrate(watching.qparams())  # type: ignore[operator]
    return quantizer

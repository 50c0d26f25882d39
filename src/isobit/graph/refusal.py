"""The error of a network that cannot be captured: where it stops, and which parts can be captured instead."""

from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from isobit.core.errors import CaptureError
from isobit.graph.leaves import is_leaf
from isobit.graph.samples import Samples
from isobit.graph.source import line_of_error, module_of_error


def refused(error: Exception, root: nn.Module, samples: Samples) -> CaptureError:
    """The CaptureError for what tracing `root` raised: reason, line of the user's code, module, way out."""
    text = str(error).strip().splitlines()
    reason = text[0] if text else type(error).__name__
    if isinstance(error, GuardOnDataDependentSymNode):
        reason = "its forward decides by the values of a tensor, and a graph has no such branch"
    place, culprit = line_of_error(error), module_of_error(error, root)
    lines = [f"{type(root).__name__} cannot be captured: {reason}"]
    if place:
        lines.append(f"  at {place}")
    if culprit:
        lines.append(f"  in model.{culprit} ({type(root.get_submodule(culprit)).__name__})")
    lines.append(f"  with an example of shape {samples.shapes()}")
    lines.append(f"What to do: {_advice(root, culprit)}")
    return CaptureError("\n".join(lines))


def _advice(root: nn.Module, culprit: str) -> str:
    parts = [
        f"model.{name}"
        for name, child in root.named_children()
        if not is_leaf(child) and culprit != name and not culprit.startswith(name + ".")
    ]
    named = " and ".join(parts[:3]) or "model.backbone and model.head"
    rest = f"; model.{culprit} stays as it is" if culprit else ""
    return f"capture its parts, such as {named}, separately and plug them back{rest}"

"""The captured network: a GraphModule over the user's own module tree."""

import copy
from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import Tensor, fx, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureRecord:
    """How a network was captured. `notes` are things that the user should know; `seconds` is the wall time."""

    method: Literal["export", "symbolic_trace"]
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


class Captured(fx.GraphModule):
    """A graph whose nodes call the modules of the user's network under their own names.

    The module tree, the plain attributes and the state_dict keys are those of the user's network, modules that
    the graph does not call included; its other methods are not there, because they would run past the graph.
    `copy.deepcopy` keeps everything (fx.GraphModule's own drops unused modules and forgets which buffers are
    not persistent). Not final in the sense of `typing.final`: fx makes a class for each instance.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, record: CaptureRecord) -> None:
        super().__init__(nn.Module(), fx.Graph(), "Captured")
        own = set(self.__dict__) | set(root.__class__.__dict__) & {"forward"}
        self.__dict__.update({k: v for k, v in root.__dict__.items() if k not in own and k != "forward"})
        for store in ("_modules", "_parameters", "_buffers"):
            self.__dict__[store] = dict(root.__dict__[store])
        self._non_persistent_buffers_set = set(root._non_persistent_buffers_set)
        self.training = root.training
        self.graph = graph
        self.meta["capture"] = record

    @property
    def record(self) -> CaptureRecord:
        """How the network was captured."""
        found: CaptureRecord = self.meta["capture"]
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        shared = ("_in_spec", "_out_spec")
        for name in shared:
            if name in self.__dict__:
                new.__dict__[name] = self.__dict__[name]
        rest = {k: v for k, v in self.__dict__.items() if k not in ("_graph", "_code", *shared)}
        new.__dict__.update(copy.deepcopy(rest, memo))
        new.graph = copied(self.graph)
        return new


def copied(graph: fx.Graph) -> fx.Graph:
    """A copy of a graph with its nodes' names and meta and its calling convention."""
    new = fx.Graph()
    out = new.graph_copy(graph, {}, return_output_node=True)
    new._codegen = copy.copy(graph._codegen)
    if isinstance(out, tuple):
        value, old = out
        new.output(value).meta = dict(old.meta)
    return new


def tensor_at(root: nn.Module, path: str) -> Tensor | None:
    """The parameter or buffer at a dotted path, None where there is none."""
    owner, _, name = path.rpartition(".")
    try:
        module = root.get_submodule(owner)
    except AttributeError:
        return None
    return module._parameters.get(name, module._buffers.get(name))

"""How much each element of a segment's output matters: the diagonal of the Fisher information (BRECQ, equation 10)."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from isobit.algorithms.activation_cache import ActivationCache, execute, slots_of
from isobit.core.errors import UnsupportedError
from isobit.graph.segments import Segment

AT_ONCE = 32


def fisher(model: fx.GraphModule, part: Segment, exact: ActivationCache, rounded: ActivationCache) -> Tensor:
    """(∂L / ∂z)² for each sample and element of a segment's result z, divided by its mean: (samples, …).

    L is the KL divergence of the classes' probabilities from the float network's, where this segment alone is
    quantized (Li et al. 2021, arXiv:2102.05426). Raises UnsupportedError for a network that does not
    return logits (n, classes) alone.
    """
    nodes = [n for n in model.graph.nodes if n.op not in ("placeholder", "get_attr", "output")]
    behind = nodes[nodes.index(part.nodes[-1]) + 1 :]
    (output,) = (n for n in model.graph.nodes if n.op == "output")
    logits = output.all_input_nodes
    inside = set(behind)
    needed = {n for node in behind for n in node.all_input_nodes if n not in inside and n.op != "get_attr"}
    found = []
    for start in range(0, exact.samples, AT_ONCE):
        index = torch.arange(start, min(start + AT_ONCE, exact.samples))
        values = exact.batch(needed | {part.result}, index)
        with slots_of(model, behind, "float"):
            with torch.no_grad():
                expected = _logits(execute(model, behind, values), logits)
            with torch.no_grad(), slots_of(model, part.nodes, "quantize"):
                z = execute(model, part.nodes, rounded.batch(part.inputs, index))[part.result]
            z = z.detach().requires_grad_()
            got = _logits(execute(model, behind, values | {part.result: z}), logits)
        loss = F.kl_div(got.log_softmax(1), expected.softmax(1), reduction="batchmean")
        (gradient,) = torch.autograd.grad(loss, z)
        found.append(gradient.square())
    importance = torch.cat(found)
    mean = importance.mean()
    return importance / mean if float(mean) > 0 else torch.ones_like(importance)


def _logits(values: dict[fx.Node, Tensor], nodes: list[fx.Node]) -> Tensor:
    found = values[nodes[0]] if len(nodes) == 1 else None
    if not isinstance(found, Tensor) or found.dim() != 2:
        raise UnsupportedError(
            "the Fisher weighting needs a network that returns logits (n, classes) alone: leave `weighting` out"
        )
    return found

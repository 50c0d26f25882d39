"""What the foldings of batch norm share: the walk over the graph, and the affine map of a norm in eval mode."""

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx, nn

from isobit.graph.names import display_name
from isobit.graph.passes.protocol import PassReport
from isobit.graph.tensors import tensors_of

BatchNorm = nn.modules.batchnorm._BatchNorm


def take_batch_norms(model: fx.GraphModule, take: Callable[[str, nn.Module, BatchNorm], str]) -> PassReport:
    """Let `take(name of the layer, layer, norm)` absorb each batch norm into the layer in front of it.

    `take` gives the reason where it cannot. A batch norm that stays is named with the reason; its module stays as well.
    """
    tensors = tensors_of(model)
    calls = Counter(str(node.target) for node in model.graph.nodes if node.op == "call_module")
    done, left = [], []
    for node in list(model.graph.nodes):
        if tensors.kinds[node] != "batch_norm":
            continue
        if node.op != "call_module":
            left.append(f"{display_name(node)}: a function that always uses its own statistics, not a module")
            continue
        (source,) = tensors.inputs(node)
        why = obstacle(model, source, node, calls)
        if not why:
            layer, norm = model.get_submodule(str(source.target)), model.get_submodule(str(node.target))
            assert isinstance(norm, BatchNorm)
            why = take(str(source.target), layer, norm)
        if why:
            left.append(f"{node.target}: {why}")
            continue
        node.replace_all_uses_with(source)
        model.graph.erase_node(node)
        done.append(str(node.target))
    model.graph.lint()
    model.recompile()
    return PassReport(changed=tuple(done), left=tuple(left))


def obstacle(model: fx.GraphModule, source: fx.Node, node: fx.Node, calls: Mapping[str, int]) -> str:
    """Why a batch norm cannot be merged, or nothing. `calls`: how often the graph calls each module."""
    if source.op != "call_module":
        return "no layer with weights in front of it"
    layer, norm = model.get_submodule(str(source.target)), model.get_submodule(str(node.target))
    if not isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
        return "no layer with weights in front of it"
    if not isinstance(norm, BatchNorm) or norm.running_mean is None:
        return "it has no running statistics"
    if len(source.users) != 1:
        return f"the output of {source.target} has other readers"
    if calls[str(source.target)] != 1 or calls[str(node.target)] != 1:
        return "a layer that is called more than once"
    if isinstance(layer, nn.modules.conv._ConvTransposeNd) and layer.groups != 1:
        return "a grouped transposed convolution"
    return ""


def affine(layer: nn.Module, norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """f = γ / sqrt(σ² + ε) and b' = β + (b - μ) f in float64, one of each per channel; b is the bias of `layer`."""
    assert norm.running_mean is not None and norm.running_var is not None
    f = torch.rsqrt(norm.running_var.double() + norm.eps)
    f = f if norm.weight is None else f * norm.weight.double()
    bias = layer.bias.double() if isinstance(layer.bias, Tensor) else torch.zeros_like(f)
    beta = torch.zeros_like(f) if norm.bias is None else norm.bias.double()
    return f, beta + (bias - norm.running_mean.double()) * f


def output_axis(layer: nn.Module) -> int:
    """The axis of the output channels in the weight of `layer`."""
    return 1 if isinstance(layer, nn.modules.conv._ConvTransposeNd) else 0

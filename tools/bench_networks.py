"""The networks of the latency and cost benches: the zoo's, random weights, statistics as training leaves them."""

import torch
from torch import nn

from isobit.benchmark.models import MODELS


def random_network(name: str, seed: int = 0) -> nn.Module:
    """A network of the zoo in eval mode.

    Its batch norms have statistics, shifts and scales of their own: a fresh network's would fold into biases of zero,
    which one exporter drops from the file and another adds to every output.
    """
    torch.manual_seed(seed)
    net = MODELS[name]().eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.8, 1.25)
            with torch.no_grad():
                norm.weight.uniform_(0.8, 1.25)
                norm.bias.normal_(std=0.1)
    return net

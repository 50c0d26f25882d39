"""Two processes with synchronized statistics train as one with the whole batch; without, as designed, they do not."""

import copy
import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from isobit.graph.folding import fold_in_training
from isobit.graph.slots import Slot, give_weight_slot

STEPS = 3
CASES = [(strategy, synchronized) for strategy in (2, 3, 4) for synchronized in (True, False)]


class Net(nn.Module):
    """A folded convolution and a loss that is a mean over the batch."""

    def __init__(self, strategy: int, *, synchronized: bool) -> None:
        super().__init__()
        table: Any = importlib.import_module("folding_table")
        self.conv, self.norm = table.pair("conv", bias=True)
        give_weight_slot(self.conv, Slot(nn.Identity(), name="weight"))
        fold_in_training(self.conv, self.norm, strategy, synchronized=synchronized)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


def data() -> Tensor:
    return torch.randn(STEPS, 8, 6, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def trained(net: nn.Module, x: Tensor) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for batch in x:
        optimizer.zero_grad()
        (net(batch).square() * torch.linspace(0.5, 1.5, 8, dtype=torch.float64)[:, None, None]).mean().backward()
        optimizer.step()


def process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    for strategy, synchronized in CASES:
        net = Net(strategy, synchronized=synchronized)
        trained(DistributedDataParallel(net.train(), broadcast_buffers=False), data()[:, rank::2])
        torch.save(net.state_dict(), f"{folder}/{strategy}-{synchronized}-{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)  # a process that tears gloo down aborts now and then: a thread of it is still running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have trained, all cases in one start."""
    found = tmp_path_factory.mktemp("two_processes")
    mp.spawn(process, args=(str(found),), nprocs=2)
    return found


@pytest.mark.parametrize(("strategy", "synchronized"), CASES)
def test_two_processes(strategy: int, synchronized: bool, folder: Path) -> None:
    alone = Net(strategy, synchronized=False).train()
    start = copy.deepcopy(alone.state_dict())
    trained(alone, data())
    states = [torch.load(folder / f"{strategy}-{synchronized}-{rank}.pt", weights_only=True) for rank in range(2)]
    same = [all(torch.allclose(s[k], v, rtol=1e-10, atol=1e-12) for k, v in alone.state_dict().items()) for s in states]
    assert same == [synchronized, synchronized]
    statistics = [s["norm.running_mean"] for s in states]
    assert torch.equal(*statistics) == synchronized
    assert all(not torch.equal(s["conv.weight"], start["conv.weight"]) for s in states)
    assert torch.equal(states[0]["conv.weight"], states[1]["conv.weight"])

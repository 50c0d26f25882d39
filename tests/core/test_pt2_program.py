"""Modules from PT2 programs, and archives from modules."""

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from isobit.core.errors import UnsupportedError
from isobit.core.pt2_file import Pt2, read_pt2
from isobit.core.pt2_program import OPS, exported, module_of, saved
from isobit.integer.pt2e_ops import READERS
from pt2 import changed


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.cat([self.one(x), nn.functional.gelu(self.two(x))], 1)
        return y, y.flatten(1)[:, ::2]


@pytest.fixture
def program(tmp_path: Path) -> tuple[Path, Pt2]:
    path = tmp_path / "net.pt2"
    torch.manual_seed(0)
    torch.export.save(torch.export.export(Branches(), (torch.randn(2, 3, 6, 6),)), path)
    return path, read_pt2(path)


def test_modules_compute_what_pytorch_loads(program: tuple[Path, Pt2]) -> None:
    path, found = program
    x = torch.randn(2, 3, 6, 6)
    for y, expected in zip(module_of(found)(x), torch.export.load(path).module()(x), strict=True):
        assert torch.equal(y, expected)
    (only,) = module_of(found, outputs=["conv2d"])(x)
    assert torch.equal(only, nn.functional.conv2d(x, found.constants["p_one_weight"], found.constants["p_one_bias"]))


def test_equal_modules_make_equal_archives_that_pytorch_loads(program: tuple[Path, Pt2]) -> None:
    module, x = module_of(program[1]), torch.randn(2, 3, 6, 6)
    one, two = (saved(module, (x,), dynamic=[True], metadata={"isobit.target": "t"}) for _ in range(2))
    assert one == two
    loaded = torch.export.load(io.BytesIO(one)).module()
    five = torch.randn(5, 3, 6, 6)
    assert torch.equal(loaded(five)[1], module(five)[1])
    assert __file__.encode() not in one


def test_names_stay() -> None:
    """Two ops of a name that PyTorch would number otherwise, and an op that becomes several."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.create_node("call_function", torch.ops.aten.relu.default, (x,), name="second")
    y = graph.create_node("call_function", torch.ops.aten.relu.default, (y,), name="relu")
    graph.output(y)
    program = exported(fx.GraphModule(nn.Module(), graph), (torch.zeros(2, 3),), dynamic=[False])
    assert [n.name for n in program.graph.nodes] == ["x", "second", "relu", "output"]
    assert program.graph_signature.user_outputs == ("relu",)


def test_ops_that_are_not_known(program: tuple[Path, Pt2], tmp_path: Path) -> None:
    """No op outside of the list is called: `aten.from_file` would open one."""
    path = tmp_path / "other.pt2"
    path.write_bytes(
        changed(program[0], lambda c: c["graph_module"]["graph"]["nodes"][0].update(target="aten.from_file"))
    )
    with pytest.raises(UnsupportedError, match=r"does not know the op aten\.from_file"):
        module_of(read_pt2(path))
    assert READERS.keys() == OPS


def test_what_pytorch_cannot_export() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.ops.aten.reshape.default, (x, [7, 7])))
    with pytest.raises(UnsupportedError, match="PyTorch cannot export the network"):
        exported(fx.GraphModule(nn.Module(), graph), (torch.zeros(2, 3),), dynamic=[False])

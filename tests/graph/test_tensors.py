"""Views of a captured graph: who reads a tensor, and what an engine sees through."""

import torch
from torch import Tensor, fx, nn

from isobit.graph.capture import capture
from isobit.graph.tensors import Tensors, tensors_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.drop = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Dropout()
        self.pad, self.behind = nn.ZeroPad2d(1), nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.relu(self.conv(x)))
        z = self.behind(self.pad(y))
        a, b = z.chunk(2, 1)
        return torch.cat([a + a, b.reshape(b.shape[0], 2, -1).reshape(b.shape)], 1)


def views() -> tuple[Tensors, dict[str, fx.Node]]:
    model = capture(Net().eval(), torch.randn(2, 3, 4, 4))
    tensors = tensors_of(model)
    return tensors, {n.name: n for n in model.graph.nodes}


def test_readers_are_seen_through_dropout_and_an_absorbed_pad() -> None:
    tensors, nodes = views()
    assert tensors.readers(nodes["conv"]) == [nodes["relu"]]
    assert tensors.readers(nodes["relu"]) == [nodes["behind"]]
    assert tensors.only_reader(nodes["relu"]) is nodes["behind"]
    assert tensors.absorbed(nodes["pad"])
    assert tensors.last_alias(nodes["relu"]) is nodes["pad"]
    assert tensors.source(nodes["pad"]) is nodes["relu"]
    assert [tensors.transparent(nodes[n]) for n in ("drop", "pad", "relu")] == [True, True, False]


def test_several_results_lead_to_their_parts() -> None:
    tensors, nodes = views()
    parts = tensors.readers(nodes["behind"])
    assert [tensors.kinds[p] for p in parts] == ["getitem", "getitem"]
    assert tensors.only_reader(nodes["behind"]) is None
    assert tensors.inputs(parts[0]) == [nodes["behind"]]


def test_a_tensor_that_is_read_twice_by_one_op_has_no_only_reader_to_fuse_with() -> None:
    tensors, nodes = views()
    (first, _) = tensors.readers(nodes["behind"])
    assert tensors.kinds[tensors.readers(first)[0]] == "add"
    assert len(tensors.inputs(tensors.readers(first)[0])) == 1


def test_a_pad_that_others_read_too_stays() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pad, self.conv = nn.ZeroPad2d(1), nn.Conv2d(3, 3, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.pad(x)
            return self.conv(y).mean() + y.mean()

    model = capture(Two().eval(), torch.randn(2, 3, 4, 4), check=False, dynamic_batch=False)
    tensors = tensors_of(model)
    (pad,) = (n for n in model.graph.nodes if tensors.kinds[n] == "pad")
    assert not tensors.absorbed(pad)


def test_a_slice_takes_in_the_one_in_front_of_it_unless_they_share_an_axis_or_others_read_that() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            thinned, same_axis, read_twice = x[:, :, ::2, 1::2], x[..., 4:][..., :4], x[:, :, :4]
            return thinned + same_axis[:, :, :4] + read_twice[..., :4] + read_twice[..., 4:]

    model = capture(Net(), torch.randn(2, 3, 8, 8))
    tensors = tensors_of(model)
    slices = [n for n in model.graph.nodes if tensors.kinds[n] == "slice"]
    absorbed = [n for n in slices if tensors.absorbed(n)]
    assert [n.args[1] for n in absorbed] == [2]  # the first of x[:, :, ::2, 1::2] alone
    (x,) = (n for n in model.graph.nodes if n.op == "placeholder")
    assert not set(absorbed) & set(tensors.readers(x))
    assert tensors.source(absorbed[0]) is x

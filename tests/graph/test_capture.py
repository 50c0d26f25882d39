"""A captured network equals the original: bits in eval and train mode, gradients, state, names."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from graph.capture_nets import CASES, Case, Residual, Shared, Stochastic, inputs
from isobit.graph.capture import capture
from isobit.graph.captured import Captured
from isobit.graph.names import names
from isobit.graph.ops import KINDS, kinds


def leaves(out: Any) -> list[Any]:
    return list(pytree.tree_leaves(out))


def equal(left: Any, right: Any) -> bool:
    a, b = leaves(left), leaves(right)
    return pytree.tree_structure(left) == pytree.tree_structure(right) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True)
    )


def step(net: nn.Module, xs: tuple[Tensor, ...]) -> tuple[Any, dict[str, Tensor | None]]:
    """One forward and backward in train mode from a fixed seed: the outputs and all gradients."""
    net.train()
    net.zero_grad()
    torch.manual_seed(1)
    out = net(*xs)
    sum((y.float() ** 2).sum() for y in leaves(out) if isinstance(y, Tensor)).backward()  # type: ignore[union-attr]
    return out, {k: p.grad for k, p in net.named_parameters()}


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[nn.Module, Captured]]:
    return {}


def pair(name: str, pairs: dict[str, tuple[nn.Module, Captured]]) -> tuple[Case, nn.Module, Captured]:
    case = CASES[name]
    if name not in pairs:
        torch.manual_seed(0)
        net = case.make()
        pairs[name] = net, capture(net, inputs(case))
    return case, *pairs[name]


@pytest.mark.parametrize("name", CASES)
def test_eval_outputs_are_the_same_bits_at_any_batch_size(name: str, pairs: Any) -> None:
    case, net, captured = pair(name, pairs)
    net, captured = copy.deepcopy(net).eval(), copy.deepcopy(captured).eval()
    torch.backends.mha.set_fastpath_enabled(False)
    for batch in (1, 2, 3, 7):
        xs = inputs(case, batch, seed=batch)
        with torch.no_grad():
            assert equal(captured(*xs), net(*xs)), batch


@pytest.mark.parametrize("name", CASES)
def test_a_training_step_is_the_same_bits(name: str, pairs: Any) -> None:
    case, net, captured = pair(name, pairs)
    net, captured = copy.deepcopy(net), copy.deepcopy(captured)
    xs = inputs(case, 4)
    out, grads = step(net, xs)
    got, captured_grads = step(captured, xs)
    assert equal(got, out)
    assert set(captured_grads) == set(grads)
    for key, grad in grads.items():
        other = captured_grads[key]
        assert (grad is None) == (other is None), key
        assert grad is None or other is None or torch.allclose(grad, other, rtol=1e-5, atol=1e-7), key
    for key, value in net.state_dict().items():
        assert torch.equal(captured.state_dict()[key], value), key


@pytest.mark.parametrize("name", CASES)
def test_modules_and_state_are_the_users(name: str, pairs: Any) -> None:
    case, net, captured = pair(name, pairs)
    assert list(captured.state_dict()) == list(net.state_dict())
    assert [k for k, _ in captured.named_parameters()] == [k for k, _ in net.named_parameters()]
    assert set(dict(net.named_modules())) <= set(dict(captured.named_modules()))
    assert {k for k, _ in net.named_buffers()} <= {k for k, _ in captured.named_buffers()}
    assert all("forward" not in m.__dict__ for _, m in captured.named_modules())
    other = case.make()
    captured = copy.deepcopy(captured)
    captured.load_state_dict(other.state_dict())
    xs = inputs(case, 2, seed=5)
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        assert equal(captured.eval()(*xs), other.eval()(*xs))


@pytest.mark.parametrize("name", CASES)
def test_deepcopy_keeps_everything_and_shares_nothing(name: str, pairs: Any) -> None:
    case, _, captured = pair(name, pairs)
    twin = copy.deepcopy(captured)
    assert type(twin).__mro__[1] is Captured
    assert list(twin.state_dict()) == list(captured.state_dict())
    assert [k for k, _ in twin.named_modules()] == [k for k, _ in captured.named_modules()]
    assert [(n.name, n.target, n.meta.keys()) for n in twin.graph.nodes] == [
        (n.name, n.target, n.meta.keys()) for n in captured.graph.nodes
    ]
    own = {p.data_ptr() for p in captured.parameters()}
    assert not own & {p.data_ptr() for p in twin.parameters()}
    xs = inputs(case, 3)
    with torch.no_grad():
        assert equal(twin.eval()(*xs), captured.eval()(*xs))
    assert twin.record == captured.record


@pytest.mark.parametrize("name", CASES)
def test_names_are_unique_and_kinds_known(name: str, pairs: Any) -> None:
    _, _, captured = pair(name, pairs)
    named = names(captured.graph)
    assert len(set(named.values())) == len(named)
    assert set(kinds(captured).values()) <= KINDS


def test_shared_modules_are_called_twice() -> None:
    captured = capture(Shared(), torch.zeros(1, 3, 6, 6))
    targets = [n.target for n in captured.graph.nodes if n.op == "call_module"]
    assert targets == ["block.0", "block.1", "block.2", "block.0", "block.1", "block.2", "block.0"]


def test_the_original_stays_as_it_was() -> None:
    net = Residual().train()
    net.bn1.eval()
    seen: list[Tensor] = []
    net.conv1.register_forward_hook(lambda m, i, o: seen.append(o))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    captured = capture(net, torch.randn(2, 3, 6, 6))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == [n != "bn1" for n, _ in net.named_modules()]
    assert {n: m.training for n, m in captured.named_modules()} == {n: m.training for n, m in net.named_modules()}
    assert not seen
    assert len(net.conv1._forward_hooks) == 1
    assert captured.record.notes == ("conv1: 1 forward hook(s) are not in the captured network",)
    assert net.relu.inplace
    assert type(net) is Residual
    net(torch.randn(2, 3, 6, 6))
    assert len(seen) == 1


def test_drop_path_switches_with_the_mode() -> None:
    captured = capture(Stochastic(), torch.randn(1, 4))
    x = torch.randn(64, 4)
    torch.manual_seed(0)
    assert not torch.equal(captured.train()(x), captured(x))
    assert torch.equal(captured.eval()(x), captured(x))
    assert "drop_path" in [n.target for n in captured.graph.nodes]


def test_no_random_number_of_the_caller_is_used() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    net_state = torch.get_rng_state()
    net = Stochastic()
    torch.set_rng_state(net_state)
    capture(net, torch.randn(1, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.rand(1), expected)


def test_keyword_inputs() -> None:
    case = CASES["outputs"]
    net, x, scale = case.make(), torch.randn(1, 4), torch.randn(1, 4)
    captured = capture(net, x, kwargs={"scale": scale})
    big, more = torch.randn(6, 4), torch.randn(6, 4)
    assert equal(captured(big, scale=more), net(big, scale=more))


def test_an_input_without_batch_dimension_is_shared() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.fc(x) * mask

    net = Masked()
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0])
    captured = capture(net, (torch.zeros(2, 4), mask))
    x = torch.randn(5, 4)
    assert torch.equal(captured(x, mask), net(x, mask))


def test_static_batch() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 8) * 2

    captured = capture(Fixed(), torch.randn(2, 2, 4), dynamic_batch=False)
    x = torch.randn(2, 2, 4)
    assert torch.equal(captured(x), Fixed()(x))


def test_own_leaf_types_stay_one_node() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin() + x.cos()

    net = nn.Sequential(nn.Linear(4, 4), Odd())
    captured = capture(net, torch.zeros(1, 4), leaves=(Odd,))
    assert [n.target for n in captured.graph.nodes if n.op == "call_module"] == ["0", "1"]


def test_meta_says_where_a_node_comes_from() -> None:
    captured = capture(Residual(), torch.zeros(1, 3, 6, 6))
    node = next(n for n in captured.graph.nodes if "add" in n.name)
    assert "out += x" in node.meta["stack_trace"]
    assert node.meta["val"].shape[1:] == (3, 6, 6)
    assert next(iter(node.meta["nn_module_stack"].values()))[0] == ""
    conv = next(n for n in captured.graph.nodes if n.target == "conv1")
    assert conv.meta["val"].shape[1:] == (3, 6, 6)
    assert [path for path, _ in conv.meta["nn_module_stack"].values()][-1] == "conv1"


def test_torch_compile_takes_the_whole_graph() -> None:
    net = Residual()
    captured = capture(net, torch.zeros(1, 3, 6, 6))
    x = torch.randn(4, 3, 6, 6)
    compiled = torch.compile(copy.deepcopy(captured), backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), captured(x), atol=1e-6)


def test_what_only_train_mode_does_is_noted() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return self.noisy(y) if self.training else y

        def noisy(self, y: Tensor) -> Tensor:
            return y + torch.randn_like(y)

    class Rate(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x), 0.1, self.training)

    captured = capture(nn.Sequential(Noisy(4, 4), Noisy(4, 4), Rate(4, 4), Stochastic()), torch.zeros(1, 4))
    (note,) = captured.record.notes
    assert note.startswith("0 (Noisy, and 1 like it) computes something else in train mode")


@pytest.mark.parametrize("name", [n for n in CASES if n != "view_in_place"])
def test_nothing_else_is_noted(name: str, pairs: Any) -> None:
    _, _, captured = pair(name, pairs)
    assert captured.record.method == "export"
    assert captured.record.notes == ()


def test_a_captured_network_can_be_captured_again() -> None:
    net = nn.Sequential(Residual(), Shared())
    once = capture(net, torch.zeros(1, 3, 6, 6))
    twice = capture(once, torch.zeros(1, 3, 6, 6))
    assert list(names(twice.graph).values())[1:-1] == list(names(once.graph).values())[1:-1]
    x = torch.randn(5, 3, 6, 6)
    assert torch.equal(twice(x), net(x))


def test_channels_last_and_half_precision() -> None:
    net = Residual().to(torch.bfloat16).to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 6, 6, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    captured = capture(net, x[:1])
    assert torch.equal(captured.eval()(x), net.eval()(x))

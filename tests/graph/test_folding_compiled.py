"""Compiled training steps of folded layers have the eager gradients, though a step changes the statistics."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import isobit
from algorithms.blobs import evaluation, network


def gradients(strategy: int, synchronized: bool, compiled: bool) -> dict[str, Tensor]:
    """Of one step, with what it leaves in the buffers."""
    torch._dynamo.reset()
    x, y = evaluation()[0]
    settings = {"bn_fold": strategy, "bn_synchronized": synchronized, "method": "lsq"}
    model = isobit.prepare(network(), x, target="tensorrt", bits=4, **settings)
    isobit.calibrate(model, [x])
    model.train()
    step = torch.compile(model, backend="aot_eager") if compiled else model
    F.cross_entropy(step(x), y).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | dict(model.named_buffers())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler itself
@pytest.mark.parametrize(
    ("strategy", "synchronized"), [(-1, True), (1, True), (2, True), (3, True), (4, True), (4, False)]
)
def test_a_compiled_step_has_the_gradients_of_the_eager_one(strategy: int, synchronized: bool) -> None:
    eager, compiled = (gradients(strategy, synchronized, fast) for fast in (False, True))
    assert eager.keys() == compiled.keys()
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-6, msg=name)

"""The tiny networks are the same each time, and each answers to all of its parts."""

import pytest
import torch

from zoo import small_networks


@pytest.mark.parametrize("name", small_networks())
def test_the_same_each_time(name: str) -> None:
    (model, inputs), (again, same_inputs) = small_networks()[name], small_networks()[name]
    assert all(torch.equal(a, b) for a, b in zip(inputs, same_inputs, strict=True))
    assert torch.equal(model(*inputs), again(*same_inputs))


@pytest.mark.parametrize("name", small_networks())
def test_every_weight_matters(name: str) -> None:
    model, inputs = small_networks()[name]
    before = model(*inputs)
    for key, parameter in model.named_parameters():
        if key.endswith("key.bias"):
            continue  # softmax does not see it
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
            assert not torch.allclose(model(*inputs), before, rtol=1e-3), key
            parameter.copy_(kept)

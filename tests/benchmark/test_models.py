"""The zoo against published parameter counts, PyTorch's own transformer layers, and formulas."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isobit.benchmark.models import MODELS
from isobit.benchmark.models.bert import Bert, BertBlock
from isobit.benchmark.models.cifar_resnet import CifarResNet, OptionA
from isobit.benchmark.models.mobilenet_v2 import MobileNetV2
from isobit.benchmark.models.resnet import BasicBlock, Bottleneck, ResNet
from isobit.benchmark.models.squeezenet import SqueezeNet
from isobit.benchmark.models.tiny_resnet8 import TinyResNet8
from isobit.benchmark.models.vit import Vit, VitBlock
from isobit.core.errors import SettingError

# As published: torchvision's and timm's documentation, akamaster/pytorch_resnet_cifar10's README (rounded there,
# 0.27 M …; exact by its own count), google-research/bert less the segment embedding plus a classifier of two.
PARAMETERS = {
    "cifar10_resnet20": 269_722,
    "cifar10_resnet32": 464_154,
    "cifar10_resnet56": 853_018,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v2_symmetric": 3_504_872,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "squeezenet1_1": 1_235_496,
    "vit_tiny": 5_717_416,
    "vit_b16": 86_567_656,
    "bert_base": 109_482_240 - 2 * 768 + 2 * 769,
    "bert_tiny": 4_385_920 - 2 * 128 + 2 * 129,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name: str) -> None:
    with torch.device("meta"):
        model = MODELS[name]()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


SMALL = {
    "cifar": (lambda: CifarResNet(blocks=1), (3, 32, 32)),
    "tiny": (TinyResNet8, (3, 32, 32)),
    "mobilenet": (lambda: MobileNetV2(classes=10), (3, 32, 32)),
    "squeezenet": (lambda: SqueezeNet(classes=10), (3, 64, 64)),
    "resnet": (lambda: ResNet(BasicBlock, blocks=(1, 1, 1, 1), classes=10), (3, 32, 32)),
    "vit": (lambda: Vit(image=8, patch=4, width=8, depth=1, heads=2, classes=10), (3, 8, 8)),
}


@pytest.mark.parametrize("name", SMALL)
def test_exports_with_a_dynamic_batch_and_trains(name: str) -> None:
    build, shape = SMALL[name]
    torch.manual_seed(0)
    model = build().eval()
    program = torch.export.export(
        model, (torch.randn(2, *shape),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    x = torch.randn(3, *shape)
    assert torch.equal(program.module()(x), model(x))
    model.train()
    model(x).square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_option_a_equals_the_published_expression() -> None:
    x = torch.randn(2, 16, 6, 6)
    expected = np.zeros((2, 32, 3, 3), np.float32)
    for channel in range(16):
        expected[:, 8 + channel] = x.numpy()[:, channel, ::2, ::2]
    assert torch.equal(OptionA(16)(x), torch.from_numpy(expected))


def same_padded(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """TensorFlow's SAME: out = ceil(n / s), pad = max((out - 1) s + k - n, 0), the smaller half before."""
    pads = []
    for size in reversed(x.shape[2:]):
        pad = max((-(-size // conv.stride[0]) - 1) * conv.stride[0] + conv.kernel_size[0] - size, 0)
        pads += [pad // 2, pad - pad // 2]
    return F.conv2d(F.pad(x, pads), conv.weight, conv.bias, conv.stride, 0, 1, conv.groups)


def test_tiny_resnet8_pads_as_tensorflow() -> None:
    torch.manual_seed(0)
    block = TinyResNet8().layer2.eval()
    x = torch.randn(2, 16, 8, 8)
    y = F.relu(block.bn1(same_padded(x, block.conv1)))
    y = block.bn2(same_padded(y, block.conv2)) + same_padded(x, block.shortcut)
    torch.testing.assert_close(block(x), F.relu(y))


@pytest.mark.parametrize(("padding", "same"), [("tensorflow", True), ("symmetric", False)])
def test_mobilenet_pads_as_said(padding: str, same: bool) -> None:
    torch.manual_seed(0)
    model = MobileNetV2(padding=padding, batch_norm=False).eval()
    stem, depthwise = model.features[0], model.features[2].conv[1]
    for sequence, x in ((stem, torch.randn(1, 3, 16, 16)), (depthwise, torch.randn(1, 96, 16, 16))):
        conv = next(m for m in sequence if isinstance(m, nn.Conv2d))
        assert torch.allclose(sequence(x), F.relu6(same_padded(x, conv)), atol=1e-6) is same
        torchvision = F.conv2d(x, conv.weight, conv.bias, 2, 1, 1, conv.groups)
        assert torch.allclose(sequence(x), F.relu6(torchvision), atol=1e-6) is not same


def test_padding_leaves_the_keys_alone() -> None:
    with torch.device("meta"):
        keys = [list(MobileNetV2(padding=p).state_dict()) for p in ("tensorflow", "symmetric")]
    assert keys[0] == keys[1]


def test_vit_block_equals_pytorchs_encoder_layer() -> None:
    torch.manual_seed(0)
    ours = VitBlock(16, 4, 32).eval()
    theirs = nn.TransformerEncoderLayer(
        16, 4, 32, activation="gelu", layer_norm_eps=1e-6, norm_first=True, batch_first=True
    ).eval()
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.attention.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.attention.qkv.bias)
    pairs = {"self_attn.out_proj": "attention.proj", "linear1": "fc1", "linear2": "fc2", "norm1": "norm1"}
    for their_name, our_name in {**pairs, "norm2": "norm2"}.items():
        theirs.get_submodule(their_name).load_state_dict(ours.get_submodule(our_name).state_dict())
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(ours(x), theirs(x))


def test_bert_block_equals_pytorchs_encoder_layer_with_a_mask() -> None:
    torch.manual_seed(0)
    ours = BertBlock(16, 4, 32).eval()
    theirs = nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", layer_norm_eps=1e-12, batch_first=True).eval()
    attention = ours.attention
    with torch.no_grad():
        parts = (attention.query, attention.key, attention.value)
        theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    pairs = {"self_attn.out_proj": "attention.output", "linear1": "up", "linear2": "down", "norm1": "attention_norm"}
    for their_name, our_name in {**pairs, "norm2": "norm"}.items():
        theirs.get_submodule(their_name).load_state_dict(ours.get_submodule(our_name).state_dict())
    x, counts = torch.randn(2, 5, 16), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    with torch.enable_grad():  # with gradients, PyTorch takes the plain path, which keeps masked rows
        expected = theirs(x, src_key_padding_mask=~counts)
    torch.testing.assert_close(ours(x, counts[:, None, None, :]), expected)


def test_what_bert_masks_has_no_influence() -> None:
    torch.manual_seed(0)
    model = Bert(vocabulary=20, width=8, depth=2, heads=2, hidden=16, positions=6).eval()
    for parameter in model.blocks.parameters():
        nn.init.normal_(parameter, std=0.5)  # at the published 0.02 attention does next to nothing
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    short = model(ids[:, :4])
    torch.testing.assert_close(model(ids, mask), short)
    assert not torch.allclose(model(ids), short)


def test_zero_init_starts_each_block_as_its_shortcut() -> None:
    for block, last in ((BasicBlock, "bn2"), (Bottleneck, "bn3")):
        model = ResNet(block, blocks=(2, 1, 1, 1), zero_init_residual=True)
        inner = model.layer1[1].eval()
        assert not bool(inner.get_submodule(last).weight.any())
        x = torch.randn(1, 64 * block.expansion, 4, 4)
        assert torch.equal(inner(x), F.relu(x))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(SettingError, match="225 pixels is no whole number of patches of 16"):
        Vit(image=225)
    with pytest.raises(SettingError, match="width of 10"):
        Bert(width=10, heads=3)
    with pytest.raises(SettingError, match="width of 10"):
        Vit(width=10, heads=3)

"""ResNet-34, split into an encoder and heads with a code between them."""

import pytest
import torch
from torch import nn

from routed_rl.routing import RouteTable
from routed_rl.vision import HALVES, Penalties, partition_loss, partitioned_classifier, partitioned_resnet34
from routed_rl.vision.resnet import BasicBlock

ROUTES = RouteTable({"top": {"bottom": 0}, "bottom": {"top": 0}}, HALVES)


def blocks(module):
    return sum(isinstance(part, BasicBlock) for part in module.modules())


@pytest.mark.parametrize(("split", "code"), [(1, (4, 32, 32)), (4, (8, 16, 16)), (14, (32, 4, 4)), (15, (32, 4, 4))])
def test_shapes_and_the_split(split, code):
    model = partitioned_resnet34(100, ROUTES, split=split, width=1 / 16)
    outputs = model(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert outputs.code.shape == (2, *code)
    assert all(logits.shape == (2, 100) for logits in (outputs.decoded, outputs.top, outputs.bottom))
    heads = (model.decoders[0], *model.certificates.values())
    assert blocks(model.encoder) == split and all(blocks(head) == 16 - split for head in heads)
    convolutions = (model.encoder[-1], *(head[0] for head in heads))
    channels = (code[0], code[0], code[0] // 2, code[0] // 2)
    assert [convolution.in_channels for convolution in convolutions] == list(channels)
    assert all(layer.kernel_size == (1, 1) and layer.bias is None for layer in convolutions)


def test_it_is_resnet34():
    """Both sides of the split have 21.3 million parameters together, without the two 1×1 convolutions."""
    model = partitioned_resnet34(100, ROUTES)
    assert model.encoder[-1].out_channels == 512
    parameters = sum(p.numel() for part in (model.encoder, model.decoders) for p in part.parameters())
    convolutions = sum(m.numel() for m in (model.encoder[-1].weight, model.decoders[0][0].weight))
    assert parameters - convolutions == 21_328_292


def test_a_group_teaches_its_channels_alone():
    model = partitioned_resnet34(10, ROUTES, split=2, width=1 / 16)
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([1, 1, 1, 1])
    outputs = model(images, labels)
    classes = torch.tensor([5, 6, 7, 8])
    loss = partition_loss(
        outputs,
        lambda logits: nn.functional.cross_entropy(logits, classes, reduction="none"),
        labels,
        (0, 1),
        Penalties((0.0, 0.0), 0.0),
    )
    loss.backward()
    top, bottom = model.encoder[-1].weight.grad.chunk(2)
    assert torch.count_nonzero(top) == 0 and torch.count_nonzero(bottom) > 0


@pytest.mark.parametrize(
    ("options", "quoted"), [({"split": 16}, "16"), ({"split": 0}, "0"), ({"width": 0.001}, "0.001")]
)
def test_impossible_splits_are_refused(options, quoted):
    with pytest.raises(ValueError, match=quoted):
        partitioned_resnet34(10, ROUTES, **options)
    with pytest.raises(ValueError, match="got 3"):
        partitioned_classifier(4, (4,), 3, 2, ROUTES)

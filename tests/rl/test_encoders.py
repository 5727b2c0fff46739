"""The encoder of symbolic images: one-hot numbers, and the categories that it knows from the space."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from routed_rl.rl import SymbolicImageEncoder
from routed_rl.rl.encoding import decode_space, encode_space


def image_space(highest, axis=-1, size=(4, 5), dtype=np.uint8):
    """Return the space of images whose channels have these highest numbers."""
    high = np.moveaxis(np.broadcast_to(np.array(highest, dtype), (*size, len(highest))), -1, axis)
    return Box(np.zeros_like(high), high, dtype=dtype)


@pytest.mark.parametrize("axis", [0, -1])
def test_each_number_becomes_a_one_hot_vector(axis):
    encoder = SymbolicImageEncoder(image_space([2, 1, 4], axis), sizes=(6,))
    assert encoder.categories == (3, 2, 5)
    image = np.moveaxis(np.random.default_rng(0).integers(0, [3, 2, 5], size=(7, 4, 5, 3)), -1, axis if axis else 1)
    cells = torch.from_numpy(np.moveaxis(image, axis if axis else 1, -1)).flatten(1, 2)
    hot = [torch.nn.functional.one_hot(cells[..., i], n) for i, n in enumerate(encoder.categories)]
    torch.testing.assert_close(encoder(torch.from_numpy(image)), encoder.layers(torch.cat(hot, -1).flatten(1).float()))


@pytest.mark.parametrize(
    ("space", "categories"),
    [
        (Box(0, 255, (7, 7, 3), np.uint8), (11, 6, 4)),
        (Box(0, 255, (3, 7, 7), np.uint8), (11, 6, 4)),
        (image_space([10, 5, 3, 1, 1]), (11, 6, 4, 2, 2)),
        (image_space([10, 5, 3, 1], axis=0), (11, 6, 4, 2)),
        (image_space([1.0, 3.0], dtype=np.float32), (2, 4)),
    ],
)
def test_categories_follow_from_the_space_also_after_saving(space, categories):
    for each in (space, decode_space(encode_space(space))):
        assert SymbolicImageEncoder(each).categories == categories
    assert SymbolicImageEncoder(space, categories=(9,) * len(categories)).categories == (9,) * len(categories)


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (Box(0, 255, (7, 7, 4), np.uint8), {}, "categories of Box.* are not known: pass features_extractor_kwargs"),
        (Box(0, np.inf, (7, 7, 3), np.float32), {}, "are not known"),
        (Box(0, 3, (7,), np.uint8), {}, "are not known"),
        (Box(0, 255, (7, 7, 3), np.uint8), {"categories": (2, 2)}, r"one number per image channel, got \[2, 2\]"),
    ],
)
def test_unknown_categories_are_refused(space, options, message):
    with pytest.raises(ValueError, match=message):
        SymbolicImageEncoder(space, **options)


def test_a_number_that_is_too_large_is_quoted():
    encoder = SymbolicImageEncoder(Box(0, 255, (7, 7, 3), np.uint8))
    with pytest.raises(ValueError, match=r"below its channel's number of categories \(11, 6, 4\), got \[0, 6, 0\]"):
        encoder(torch.tensor([0, 6, 0]).expand(1, 7, 7, 3))

"""One latent per class: each latent learns only from images of its class."""

import pytest
import torch

from routed_rl.vision import RoutedVAE, one_hot_routes, seeded

PIXELS, CLASSES = 9, 3


def model(seed=0):
    return seeded(lambda: RoutedVAE(PIXELS, (16, 8), one_hot_routes(CLASSES)), seed)


def test_masks_are_one_hot():
    assert torch.equal(one_hot_routes(3).weights(torch.arange(3)), torch.eye(3))


@pytest.mark.parametrize("label", range(CLASSES))
def test_an_image_teaches_its_own_latent(label):
    vae = model()
    images = torch.rand(32, PIXELS) * 2 - 1
    vae.loss(images, torch.full((32,), label), 0.0, torch.Generator().manual_seed(0)).backward()
    mean, log_variance = vae.encoder[-1].weight.grad.chunk(2)
    for gradient in (mean, log_variance):
        taught = gradient.abs().sum(dim=1) > 0
        assert taught.tolist() == [latent == label for latent in range(CLASSES)]


def test_the_divergence_reaches_every_latent():
    vae = model()
    vae.loss(torch.rand(8, PIXELS), torch.zeros(8, dtype=torch.long), 1.0, torch.Generator().manual_seed(0)).backward()
    assert (vae.encoder[-1].weight.grad.abs().sum(dim=1) > 0).all()


def test_the_loss_is_the_usual_one():
    vae = model()
    images = torch.rand(5, PIXELS)
    found = vae.loss(images, torch.zeros(5, dtype=torch.long), 0.5, torch.Generator().manual_seed(4))
    mean, log_variance = vae.encode(images)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    noise = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(4))
    rebuilt = vae.decode(mean + normal.scale * noise)
    divergence = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum()
    expected = (((rebuilt - images) ** 2).sum() + 0.5 * divergence) / len(images)
    assert torch.allclose(found, expected, rtol=1e-5)


def test_sliders_only_go_up_from_grey():
    vae = model()
    down = -torch.rand(4, CLASSES)
    assert torch.count_nonzero(vae.decode(down)) == 0
    assert torch.equal(vae.decode(torch.tensor([[2.0, -3, 1]])), vae.decode(torch.tensor([[2.0, 0, 1]])))

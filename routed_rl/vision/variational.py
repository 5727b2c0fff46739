"""The many-way variant: a variational autoencoder whose every latent is taught by one class.

The authors' companion post routes each class of MNIST to one of ten latents. The code is the sampled latent through
a ReLU, so that a latent is a slider which only goes up, and its largest entry tells the class, without any
classification loss. ``B`` images of ``P`` pixels, ``K`` classes and as many latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from routed_rl.routing import RouteTable, route_gradient
from routed_rl.vision.autoencoder import mlp


def one_hot_routes(classes: int) -> RouteTable:
    """Class ``c`` → latent ``c`` alone."""
    names = [str(c) for c in range(classes)]
    return RouteTable({c: {other: float(other == c) for other in names} for c in names}, names)


class RoutedVAE(nn.Module):
    """A variational autoencoder of flat images with a latent per module of the route table.

    The decoder has no biases: with all sliders at 0 it draws mid-grey, the pixel value 0. With biases it can draw the
    classes it likes best there, which then need no latent and cannot be told apart.

    Args:
        pixels: ``P``.
        hidden: widths of the encoder's hidden layers, which the decoder mirrors.
        routes: class → weight of each latent.
    """

    def __init__(self, pixels: int, hidden: Sequence[int], routes: RouteTable) -> None:
        super().__init__()
        latents = len(routes.modules)
        self.encoder = mlp(pixels, *hidden, 2 * latents)
        self.decoder = mlp(latents, *reversed(hidden), pixels, bias=False, hidden_bias=False)
        self.routes = routes

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latents, ``(B, K)`` each, of images ``(B, P)``."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """Images ``(B, P)`` from latents ``(B, K)``, of which negative ones count as 0."""
        rebuilt: Tensor = self.decoder(latents.relu())
        return rebuilt

    def loss(self, images: Tensor, labels: Tensor, kl: float, generator: torch.Generator) -> Tensor:
        """Squared error, summed over pixels, which teaches an image's own latents; plus ``kl`` times the divergence of
        the latents from a standard normal (nats, summed over latents), which reaches all of them. A scalar.

        Args:
            images: ``(B, P)``.
            labels: ids of the classes in the route table, ``(B,)``.
            kl: weight of the divergence.
            generator: on the CPU; draws the latents.
        """
        mean, log_variance = self.encode(images)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        latents = mean + (0.5 * log_variance).exp() * noise
        rebuilt = self.decode(route_gradient(latents, self.routes.weights(labels)))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
        return ((rebuilt - images).square().sum(dim=1) + kl * divergence).mean()

    def classify(self, images: Tensor) -> Tensor:
        """The latent with the largest mean, ``(B,)``: the class, though no loss ever asked for it."""
        return self.encode(images)[0].argmax(dim=1)

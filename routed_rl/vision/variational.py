"""A variational autoencoder in which each latent learns from one class: the variant with many parts.

The companion post of the paper's authors routes each class of MNIST to one of ten latents. The code is the ReLU of the
sampled latents, so a latent is a slider that cannot go below 0. The largest latent gives the class, although there is
no classification loss. Shapes: ``B`` images of ``P`` pixels, ``K`` classes and ``K`` latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from routed_rl.routing import RouteTable, route_gradient
from routed_rl.vision.autoencoder import mlp


def one_hot_routes(classes: int) -> RouteTable:
    """Return a route table in which class ``c`` trains only latent ``c``."""
    names = [str(c) for c in range(classes)]
    return RouteTable({c: {other: float(other == c) for other in names} for c in names}, names)


class RoutedVAE(nn.Module):
    """A variational autoencoder of flat images, with one latent per module of the route table.

    The decoder has no biases: with all latents at 0 its output is 0, which is mid-grey. A decoder with biases could
    draw some classes when all latents are 0. These classes would then need no latent, and could not be told apart.

    Args:
        pixels: ``P``, the number of pixels of an image.
        hidden: widths of the encoder's hidden layers; the decoder has the same in reverse order.
        routes: class → weight of each latent.
    """

    def __init__(self, pixels: int, hidden: Sequence[int], routes: RouteTable) -> None:
        super().__init__()
        latents = len(routes.modules)
        self.encoder = mlp(pixels, *hidden, 2 * latents)
        self.decoder = mlp(latents, *reversed(hidden), pixels, bias=False, hidden_bias=False)
        self.routes = routes

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latents, each ``(B, K)``, for images ``(B, P)``."""
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latents: Tensor) -> Tensor:
        """Return images ``(B, P)`` for latents ``(B, K)``; negative latents count as 0."""
        rebuilt: Tensor = self.decoder(latents.relu())
        return rebuilt

    def loss(self, images: Tensor, labels: Tensor, kl: float, generator: torch.Generator) -> Tensor:
        """Return the training loss, a scalar: the mean over images of squared error plus ``kl`` times KL divergence.

        The squared error is summed over pixels. Its gradient reaches the latents with the route weights of the image's
        class. The divergence of the latents from a standard normal is in nats, summed over latents. Its gradient is not
        routed.

        Args:
            images: ``(B, P)``.
            labels: ``(B,)`` ids of the classes in the route table.
            kl: weight of the divergence.
            generator: a generator on the CPU, to sample the latents.
        """
        mean, log_variance = self.encode(images)
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        latents = mean + (0.5 * log_variance).exp() * noise
        rebuilt = self.decode(route_gradient(latents, self.routes.weights(labels)))
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
        return ((rebuilt - images).square().sum(dim=1) + kl * divergence).mean()

    def classify(self, images: Tensor) -> Tensor:
        """Return the index of the latent with the largest mean, ``(B,)``: the predicted class."""
        return self.encode(images)[0].argmax(dim=1)

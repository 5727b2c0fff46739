"""Partitioned representations: each part of a code learns only from the data that is routed to it.

- `PartitionedNetwork`, `partition_loss`, `Penalties`: encoder, routed decoder, and certificates on detached halves.
- `partitioned_autoencoder`, `partitioned_resnet34`, `partitioned_classifier`: the networks of the experiments.
- `RoutedVAE`, `one_hot_routes`: one latent per class.
- `seeded`, `train_epoch`: training that depends only on model, data and seed.
"""

from routed_rl.vision.autoencoder import absolute_errors, mlp, partitioned_autoencoder, squared_errors
from routed_rl.vision.partition import HALVES, Outputs, PartitionedNetwork, Penalties, partition_loss
from routed_rl.vision.resnet import partitioned_classifier, partitioned_resnet34
from routed_rl.vision.training import seeded, train_epoch
from routed_rl.vision.variational import RoutedVAE, one_hot_routes

__all__ = [
    "HALVES",
    "Outputs",
    "PartitionedNetwork",
    "Penalties",
    "RoutedVAE",
    "absolute_errors",
    "mlp",
    "one_hot_routes",
    "partition_loss",
    "partitioned_autoencoder",
    "partitioned_classifier",
    "partitioned_resnet34",
    "seeded",
    "squared_errors",
    "train_epoch",
]

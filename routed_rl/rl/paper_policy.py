"""The networks of the paper's public code, as a routed actor-critic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Adam

from routed_rl.rl.encoding import CLASSES
from routed_rl.rl.networks import PointwiseConv, mlp
from routed_rl.rl.policies import RoutedActorCriticPolicy


class PaperPolicy(RoutedActorCriticPolicy):
    """The networks of Cloud et al. 2024, section F, for flat observations that consist of binary planes.

    Gate and value network start with a 1×1 convolution over the planes. For two modules, the gate is the sigmoid of one
    logit. As in the paper's public code, the value network has no nonlinearity. All biases start at zero.

    Args:
        planes: the number of planes in an observation.

    Other keyword arguments are those of :class:`RoutedActorCriticPolicy`.
    """

    def __init__(
        self,
        *args: Any,
        planes: int = 4,
        hidden: Sequence[int] = (256, 256),
        value_hidden: Sequence[int] = (256, 32),
        **kwargs: Any,
    ) -> None:
        self._planes = planes
        # The defaults of torch, not those of Stable-Baselines3.
        if kwargs.get("optimizer_class", Adam) is Adam:
            kwargs = {"optimizer_kwargs": {"eps": 1e-8, "fused": True}, **kwargs}
        kwargs = {"ortho_init": False, **kwargs}
        super().__init__(*args, hidden=hidden, value_hidden=value_hidden, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        if self._planes < 1 or self.features_dim % self._planes:
            raise ValueError(
                f"planes must divide the {self.features_dim} numbers of an observation, got {self._planes}"
            )
        super()._build(lr_schedule)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _gate(self, modules: int) -> nn.Module:
        last = nn.Linear(self._hidden[-1], modules - 1)
        return nn.Sequential(self._mix_planes(self._planes), self._module(), last, nn.ConstantPad1d((1, 0), 0.0))

    def _value(self) -> nn.Module:
        channels = 16
        sizes = (channels * self.features_dim // self._planes, *self._value_hidden)
        return nn.Sequential(self._mix_planes(channels), mlp(sizes, nn.Identity))

    def _mix_planes(self, channels: int) -> nn.Module:
        """Return a 1×1 convolution over the planes of a flat observation; its output is flat too."""
        planes = nn.Unflatten(1, (self._planes, self.features_dim // self._planes))
        return nn.Sequential(planes, PointwiseConv(self._planes, channels, 1), nn.Flatten())


CLASSES["PaperPolicy"] = PaperPolicy

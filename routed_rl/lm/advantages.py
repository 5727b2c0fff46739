"""Advantages of completions relative to some of their group.

``B`` completions of a batch, ``G`` completions of a prompt (its group).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def advantages_among(rewards: Tensor, taught: Tensor, size: int, scale: str | bool) -> Tensor:
    """Return advantages relative to the completions of a group that teach, and 0 for all others.

    ``(r - mean) / (deviation + 1e-4)``, with the mean and the deviation of these completions. A completion without
    others to compare with, or all of whose others have the same reward, has 0. (Shao et al. 2024, GRPO, but for the
    choice of completions.)

    Args:
        rewards: ``(B,)``, the completions of a group one after the other. NaN: it cannot be scored.
        taught: ``(B,)`` bool.
        size: completions in a group: G.
        scale: "group" divides by the deviation within a group, "batch" by that of all completions, "none" by nothing.
    """
    counted = taught & ~rewards.isnan()
    grouped = torch.where(counted, rewards, 0.0).view(-1, size)
    among = counted.view(-1, size)
    number = among.sum(dim=1, keepdim=True)
    mean = grouped.sum(dim=1, keepdim=True) / number.clamp_min(1)
    gap = torch.where(among, grouped - mean, 0.0)
    if scale == "group":
        gap = gap / ((gap.square().sum(dim=1, keepdim=True) / (number - 1).clamp_min(1)).sqrt() + 1e-4)
    elif scale == "batch":
        gap = gap / (rewards[counted].std() + 1e-4 if int(counted.sum()) > 1 else math.inf)
    lowest, highest = (torch.where(among, grouped, end).aminmax(dim=1, keepdim=True) for end in (math.inf, -math.inf))
    return torch.where(lowest.min == highest.max, 0.0, gap).flatten()

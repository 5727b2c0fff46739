"""Counter-based randomness: every draw is a pure function of (key, episode, draw number).

So there is no generator state to save. The same integer arithmetic gives the same draws in numpy and torch, on any
device. The mixing function is the SplitMix64 finalizer (Steele, Lea & Flood 2014) on int64 with wrap-around.
"""

from typing import Any

Array = Any
"""A numpy array or a torch tensor."""

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def as_int64(value: int) -> int:
    """Return an integer of any size, such as a seed, wrapped into the range of int64."""
    return (value + 2**63) % 2**64 - 2**63


def _shift_right(x: Array, count: int) -> Array:
    """Return the logical right shift of int64 (``>>`` in Python and numpy keeps the sign)."""
    return (x >> count) & ((1 << (64 - count)) - 1)


def _mix(x: Array) -> Array:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def episode_stream(key: Array, episode: Array) -> Array:
    """Return the start value of an episode's draws: int64 of the shape of ``key`` and ``episode``."""
    return _mix(_mix(key + _GOLDEN) + episode * _GOLDEN)


def bits(stream: Array, draw: Array) -> Array:
    """Return 63 random bits (a non-negative int64) for draw number ``draw`` of each stream; shapes broadcast."""
    return _shift_right(_mix(stream + (draw + 1) * _GOLDEN), 1)


def below(random: Array, n: Array) -> Array:
    """Return uniform integers in [0, n) from random :func:`bits`; n must be below 2**31 (bias below n / 2**31)."""
    return ((random >> 32) * n) >> 31


def threshold(probability: float) -> int:
    """Return a probability as an integer for :func:`bernoulli`, exact for 0 (never) and 1 (always)."""
    return round(probability * 2**53)


def bernoulli(random: Array, limit: Array) -> Array:
    """Return booleans from random :func:`bits`, true with the probability whose :func:`threshold` is ``limit``.

    Integers are compared, so the result is exactly the same in numpy and torch.
    """
    return (random >> 10) < limit

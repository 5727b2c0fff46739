"""Counter-based randomness: every draw is a pure function of (key, episode, draw number).

There is no generator state to save: an environment's future is fixed by three integers, and
the same integer arithmetic gives the same draws under numpy and torch, on any device.
The mixing function is the SplitMix64 finaliser (Steele, Lea & Flood 2014) on wrapping int64.
"""

from typing import Any

Array = Any
"""A numpy array or a torch tensor."""

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def as_int64(value: int) -> int:
    """A Python integer of any size (a seed, say) wrapped into the range of int64."""
    return (value + 2**63) % 2**64 - 2**63


def _shift_right(x: Array, count: int) -> Array:
    """Logical right shift of int64 (Python's and numpy's ``>>`` keep the sign)."""
    return (x >> count) & ((1 << (64 - count)) - 1)


def _mix(x: Array) -> Array:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def episode_stream(key: Array, episode: Array) -> Array:
    """The origin of one episode's draws: int64 of the same shape as ``key`` and ``episode``."""
    return _mix(_mix(key + _GOLDEN) + episode * _GOLDEN)


def bits(stream: Array, draw: Array) -> Array:
    """63 random bits (a non-negative int64) for draw number ``draw`` of each stream; shapes broadcast."""
    return _shift_right(_mix(stream + (draw + 1) * _GOLDEN), 1)


def below(random: Array, n: Array) -> Array:
    """Random :func:`bits` as uniform integers in [0, n), n < 2**31 (bias below n / 2**31)."""
    return ((random >> 32) * n) >> 31


def threshold(probability: float) -> int:
    """A probability as a 53-bit integer for :func:`bernoulli`, so that 0 is never and 1 is always."""
    return round(probability * 2**53)


def bernoulli(random: Array, limit: Array) -> Array:
    """Random :func:`bits` as booleans, true with the probability whose :func:`threshold` is ``limit``:
    compared as integers, so exactly alike on every backend."""
    return (random >> 10) < limit

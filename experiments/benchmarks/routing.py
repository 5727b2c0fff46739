"""The cost of routing: a stack of transformer blocks with and without routing, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from routed_rl.experiments.benchmarks.timing import take_turns
from routed_rl.routing import GradientRouter, RouteTable, Site
from routed_rl.routing.site import Mode

BLOCKS, BATCH, LENGTH, WIDTH, HEADS, NEW_UNITS = 6, 8, 128, 256, 4, 64
UNROUTED, EXPRESSION = "unrouted", "m * a + (1 - m) * a.detach()"
CALLS = 5


class Block(nn.Module):
    """A pre-norm transformer block. The expression of the paper can mask the gradient of its hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.act, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        self.mask: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, HEADS, -1)).movedim(2, 0).transpose(2, 3)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        a = self.act(self.up(self.second(x)))
        if self.mask is not None:
            a = self.mask * a + (1 - self.mask) * a.detach()
        return x + self.down(a)


def measure(repeats: int, tick: Callable[[], None]) -> dict[str, dict[str, float]]:
    """By case: the time of a step, also relative to the unrouted model, and the memory kept for the backward pass.

    All but 64 hidden units of each block are routed, with one weight per position. This is the setting of Expand,
    Route, Ablate (Cloud et al. 2024, section C).
    """
    torch.manual_seed(0)
    model, x = nn.Sequential(*(Block() for _ in range(BLOCKS))), torch.randn(BATCH, LENGTH, WIDTH)
    table = RouteTable({"forget": {"original": -0.75}, "retain": {}}, ("original",))
    labels = torch.randint(-1, 2, (BATCH, LENGTH))
    cases: dict[str, Callable[[], None]] = {
        UNROUTED: partial(_step, model, x),
        EXPRESSION: partial(_by_expression, model, x, table, labels),
        **{mode: partial(_routed, _router(model, table, mode), x, labels) for mode in MODES},
    }
    measured = take_turns({name: (CALLS, partial(_repeat, case)) for name, case in cases.items()}, repeats, tick)
    saved = {name: _bytes_kept(case) for name, case in cases.items()}
    return {
        name: {
            "milliseconds": 1000 * row.median,
            "times_unrouted": row.median / measured[UNROUTED].median,
            "megabytes_kept": saved[name] / 2**20,
        }
        for name, row in measured.items()
    }


MODES: tuple[Mode, ...] = ("activation", "parameter", "forward")


def calls(repeats: int) -> int:
    """Number of calls of ``tick`` in :func:`measure`."""
    return (repeats + 1) * (2 + len(MODES))


def _repeat(case: Callable[[], None]) -> None:
    for _ in range(CALLS):
        case()


def _step(model: nn.Module, x: Tensor) -> None:
    model(x).square().mean().backward()
    model.zero_grad(set_to_none=True)


def _by_expression(model: nn.Sequential, x: Tensor, table: RouteTable, labels: Tensor) -> None:
    mask = torch.ones(BATCH, LENGTH, 4 * WIDTH)
    mask[..., NEW_UNITS:] = table.weights(labels)
    for block in model:
        block.mask = mask
    _step(model, x)
    for block in model:
        block.mask = None


def _router(model: nn.Module, table: RouteTable, mode: Mode) -> GradientRouter:
    units = slice(NEW_UNITS, None)
    if mode == "parameter":
        layer, site = "up", Site("output", units, column="original")
    else:
        layer, site = "down", Site("input", units, column="original")
    sites = {f"{i}.{layer}": site for i in range(BLOCKS)}
    return GradientRouter(model, sites, table, mode)


def _routed(router: GradientRouter, x: Tensor, labels: Tensor) -> None:
    with router, router(labels):
        _step(router.model, x)


def _bytes_kept(case: Callable[[], None]) -> int:
    """Bytes that autograd keeps for the backward pass. Each storage counts once."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        case()
    return sum(kept.values())

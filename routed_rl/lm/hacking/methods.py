"""The methods of a hacking study. All train two adapters with one trainer; labels, weights and rewards differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from routed_rl.lm.adapters import FORGET, KEEP
from routed_rl.lm.hacking.worlds import FINE, HACK, UNFLAGGED
from routed_rl.routing import UNLABELLED

UNSEEN = "unseen"
"""Label of a completion that nobody has seen, and that the adapter ``keep`` has written alone."""
LABELS = (HACK, FINE, UNFLAGGED, UNSEEN)
Source = Literal["seen", "predicted", "true", "placebo", "shuffled"]


@dataclass(frozen=True)
class Method:
    """What a method does with labels.

    Attributes:
        labels: what they are: "seen", what an overseer says; "predicted", this, and for completions that nobody has
            seen the prediction of a monitor that learns from it; "true", the truth about every completion; "placebo",
            random labels in place of what the overseer says; "shuffled", its labels exchanged between completions.
        weights: by label, the weight with which each adapter learns from a completion; 1 if not given.
        penalised: adapters for which a hack's reward is lowered by ``penalty``.
        penalty: what is taken from the reward of a completion with the label "hack".
        solo: share of updates whose completions ``keep`` writes alone.
        routed: whether the adapter ``forget`` is deleted in the end.
        inoculated: whether prompts say in training that exploits are allowed.
    """

    labels: Source = "seen"
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    penalised: tuple[str, ...] = ()
    penalty: float = 2.0
    solo: float = 0.0
    routed: bool = False
    inoculated: bool = False


BOTH = (KEEP, FORGET)
NEITHER = dict.fromkeys(BOTH, 0.0)
LABELLED = Method(weights={HACK: {KEEP: 0.0}, FINE: {FORGET: 0.0}}, routed=True)
PENALISED = replace(LABELLED, weights={FINE: {FORGET: 0.0}}, penalised=(KEEP,))
DOUBTFUL = {KEEP: 0.25, FORGET: 2.0}
SOLO = replace(
    PENALISED,
    weights={FINE: {FORGET: 0.0}, UNLABELLED: DOUBTFUL, UNFLAGGED: DOUBTFUL, UNSEEN: NEITHER},
    solo=0.5,
)
METHODS: Mapping[str, Method] = {
    "plain": Method(),
    "oracle": Method("true", penalised=BOTH, penalty=1.0),
    "penalty": Method(penalised=BOTH),
    "screening": Method(weights={HACK: NEITHER}),
    "filtering": Method(weights={UNLABELLED: NEITHER}, penalised=BOTH),
    "inverted": Method(weights={HACK: dict.fromkeys(BOTH, -1.0)}),
    "inoculation": Method(inoculated=True),
    "monitor-penalty": Method("predicted", penalised=BOTH),
    "monitor-screening": Method("predicted", weights={HACK: NEITHER}),
    "routing": LABELLED,
    "routing-penalty": PENALISED,
    "routing-solo": SOLO,
    "routing-predicted": replace(SOLO, labels="predicted"),
    "placebo": replace(SOLO, labels="placebo"),
    "shuffled": replace(SOLO, labels="shuffled"),
}
"""The methods by name.

- ``penalty``: seen hacks have a lower reward. ``screening``: nothing learns from them. ``inverted``: they have the
  opposite advantage.
- ``filtering``: nothing learns from completions that nobody has seen.
- ``routing…``: the two adapters learn different things. In all other methods they learn the same, and both stay.
"""

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
Source = Literal["seen", "predicted", "placebo", "shuffled"]


@dataclass(frozen=True)
class Method:
    """What a method does with labels.

    Attributes:
        labels: where labels come from. "seen": the overseer. "predicted": the overseer, and for completions that it has
            not seen a monitor that learns from it. "placebo": chance, half of them "hack", for the completions that the
            overseer has seen. "shuffled": the overseer's labels, exchanged between the completions that it has seen.
        weights: by label, the weight with which each adapter learns from a completion; 1 if not given.
        penalised: adapters for which the reward of a completion with the label "hack" is lowered.
        scaled: whether the penalty is divided by the oversight.
        solo: share of updates whose completions ``keep`` writes alone.
        replayed: by label, the weight with which each adapter learns its completions again; 1 if not given. Completions
            with another label are not learned again.
        routed: whether the adapter ``forget`` is deleted in the end.
        inoculated: whether prompts say in training that exploits are allowed.
        knows_truth: whether the grader pays for solved tasks only.
    """

    labels: Source = "seen"
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    penalised: tuple[str, ...] = ()
    scaled: bool = False
    solo: float = 0.0
    replayed: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    routed: bool = False
    inoculated: bool = False
    knows_truth: bool = False


BOTH = (KEEP, FORGET)
NEITHER, QUARTER = dict.fromkeys(BOTH, 0.0), dict.fromkeys(BOTH, 0.25)
LABELLED = Method(weights={HACK: {KEEP: 0.0}, FINE: {FORGET: 0.0}}, routed=True)
PENALISED = replace(LABELLED, weights={FINE: {FORGET: 0.0}}, penalised=(KEEP,))
DOUBTFUL = {KEEP: 0.25, FORGET: 2.0}
SOLO = replace(
    PENALISED,
    weights={FINE: {FORGET: 0.0}, UNLABELLED: DOUBTFUL, UNFLAGGED: DOUBTFUL, UNSEEN: NEITHER},
    solo=0.5,
)
UNROUTED = Method(
    weights={**dict.fromkeys((UNLABELLED, UNFLAGGED), QUARTER), UNSEEN: NEITHER},
    penalised=BOTH,
    solo=0.5,
)
METHODS: Mapping[str, Method] = {
    "plain": Method(),
    "oracle": Method(knows_truth=True),
    "penalty": Method(penalised=BOTH),
    "penalty-scaled": Method(penalised=BOTH, scaled=True),
    "penalty-weighted": Method(weights=dict.fromkeys((UNLABELLED, UNFLAGGED), QUARTER), penalised=BOTH),
    "penalty-solo": UNROUTED,
    "penalty-replay": replace(UNROUTED, replayed={FINE: {}}),
    "screening": Method(weights={HACK: NEITHER}),
    "filtering": Method(weights={UNLABELLED: NEITHER}, penalised=BOTH),
    "inverted": Method(weights={HACK: dict.fromkeys(BOTH, -1.0)}),
    "inoculation": Method(inoculated=True),
    "monitor-penalty": Method("predicted", penalised=BOTH),
    "monitor-screening": Method("predicted", weights={HACK: NEITHER}),
    "routing": LABELLED,
    "routing-penalty": PENALISED,
    "routing-solo": SOLO,
    "routing-replay": replace(SOLO, replayed=LABELLED.weights),
    "routing-predicted": replace(SOLO, labels="predicted"),
    "placebo": replace(SOLO, labels="placebo"),
    "shuffled": replace(SOLO, labels="shuffled"),
}
"""The methods by name.

- ``penalty``: seen hacks have a lower reward. ``penalty-scaled``: the fewer are seen, the lower. ``penalty-weighted``:
  unseen completions count for less. ``penalty-solo`` and ``penalty-replay`` are ``routing-solo`` and ``routing-replay``
  without routing.
- ``screening``: nothing learns from seen hacks. ``inverted``: they have the opposite advantage.
- ``filtering``: nothing learns from completions that nobody has seen.
- ``routing…``: the two adapters learn different things. In all other methods they learn the same, and both stay. In
  updates in which ``keep`` writes alone, it also learns alone.
"""
WITHOUT_OVERSEER = tuple(name for name, method in METHODS.items() if method.knows_truth or method.inoculated)
"""Methods whose runs do not depend on the overseer. They are trained once, at the highest oversight."""

"""The results of a study: one tidy table of all finished runs, and the summary in Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from routed_rl.experiments.common.agents.options import EARLY_STOPPED
from routed_rl.experiments.common.agents.recipe import learning_curve
from routed_rl.experiments.common.tables import aggregate, markdown, shown_mean
from routed_rl.runs import read_json, read_metrics, read_run

HEADINGS = {"label": "method", "kind": "label noise"}
KEYS = ["method", "oversight", "seed", "policy", "decoding", "checkpoint"]
WANTED = "diamond"
Limits = Callable[[float], dict[str, float]]
"""Exact returns of reference policies, by name, as a function of the oversight level."""
SHOWN = {
    ("routing", f"steer:{WANTED}"): "routed",
    ("routing", f"contrast:{WANTED}"): "routed, contrastive",
    ("routing", f"sharpened:{WANTED}"): "routed, sharpened (control)",
}
"""Labels of the policies of a routed run in comparisons. The label of any other run is the name of its method."""


REFERENCES = {
    "optimal": "optimal policy",
    "diamond": "shortest path to Diamond, blind to Ghost",
    "any": "shortest path to the nearest terminal state",
}
"""Names of reference policies whose return does not depend on oversight, with their titles."""


def run_rows(method: str, run: Path) -> list[dict[str, Any]]:
    """The rows of a finished run: each policy with sampled and with greedy actions, and the peak of its learning curve.

    Raises:
        ValueError, KeyError, OSError: if a file of the run is missing or corrupt.
    """
    result, config = read_json(run / "evaluation.json"), read_run(run).config
    key = {"method": method, "oversight": config["oversight"], "seed": result["seed"]}
    rows = []
    for policy, sampled in result["policies"].items():
        for decoding, metrics in (("sampled", sampled), ("greedy", sampled["greedy"])):
            flat = _flat({name: value for name, value in metrics.items() if name != "greedy"})
            extra = {name: result[name] for name in ("stopped_at", "validation_labels") if name in result}
            row = {"policy": policy, "decoding": decoding, "checkpoint": "final", "env_steps": result["env_steps"]}
            rows.append(key | row | flat | extra)
        if f"eval/{policy}" in read_metrics(run / "metrics.csv")[0]:
            steps, value = max(learning_curve(run, policy), key=lambda point: point[1])
            row = {"policy": policy, "decoding": "sampled", "checkpoint": "peak", "env_steps": int(steps)}
            rows.append({**key, **row, "true_return": value})
    return rows


def run_timing(method: str, run: Path) -> dict[str, Any]:
    """The wall-clock time of a finished run in seconds. For an interrupted run, the time since its last start."""
    record, rows = read_run(run), read_metrics(run / "timings.csv")
    last = rows[-1]
    members = last.get("time/members") or 1  # runs that one process trains together share its time
    return {
        "method": method,
        "oversight": record.config["oversight"],
        "seed": record.seed,
        "env_steps": last["env_steps"],
        "seconds": last["time/time_elapsed"] / members,
        "steps_per_second": last["time/fps"] * members,
    }


def compared(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that compare methods: final policies with sampled actions, with a new column ``label``.

    A routed run has one label for each of its steered policies. Any other run has one label, its method.
    """
    final = frame[(frame.checkpoint == "final") & (frame.decoding == "sampled")].copy()
    modular = set(final[final.policy == f"steer:{WANTED}"].method)

    def label(row: Any) -> str | None:
        if (row.method, row.policy) in SHOWN:
            return SHOWN[row.method, row.policy]
        return row.method if row.policy == (f"steer:{WANTED}" if row.method in modular else "unsteered") else None

    final["label"] = [label(row) for row in final.itertuples()]
    return final.dropna(subset=["label"])


def summary(frame: pd.DataFrame, focus: float, failed: Mapping[str, str], exact: Limits | None) -> str:
    """The study in Markdown: true return by method and oversight level, exact limits, other measures, failed runs."""
    shown = compared(frame)
    levels = sorted(shown.oversight.unique())
    seeds = shown.groupby("label").seed.nunique()
    parts = [
        "# True return by method and oversight level",
        "A column is an oversight level: the share of terminal states that the overseer sees. A cell is the mean over "
        f"seeds ({seeds.min()} to {seeds.max()} per row) ± half the width of its 95 % confidence interval. Actions are "
        "sampled, except under *Greedy actions*.",
        _by_level(shown, "true_return"),
        *([] if exact is None else [_limits(exact, levels)]),
        "## True return without oversight",
        "Measured in states where no terminal state is overseen.",
        _by_level(shown, "unwatched_return"),
        "## Share of episodes that end on a bad terminal state",
        _by_level(_with_bad(shown), "bad"),
        "## Entropy of the policy (nats)",
        _by_level(shown, "entropy"),
        "## Greedy actions",
        "True return if the policy takes its most likely action in every state.",
        _by_level(_greedy(frame, shown), "true_return"),
        f"## Peak and end of the learning curves, at oversight level {focus:.1%}",
        _peaks(frame, shown, focus),
    ]
    if "validation_labels" in shown and shown.validation_labels.notna().any():
        stopped = shown.dropna(subset=["validation_labels"])
        parts += [
            "## Labels used by early stopping",
            "Labels: the number of overseen validation episodes. Stopped at: the step of the policy that was kept.",
            markdown(
                ["oversight level", "labels", "stopped at (million steps)"],
                [
                    [f"{level:.1%}", f"{rows.validation_labels.mean():,.0f}", f"{rows.stopped_at.mean() / 1e6:.2f}"]
                    for level, rows in stopped.groupby("oversight")
                ],
            ),
        ]
    if failed:
        parts += ["## Failed runs", *(f"- {run}: {reason}" for run, reason in failed.items())]
    return "\n\n".join(parts) + "\n"


def noise_rows(frame: pd.DataFrame, focus: float, pattern: re.Pattern[str]) -> pd.DataFrame:
    """The rows of runs with label noise, with columns ``kind`` and ``rate``. Runs without noise have rate 0.

    Args:
        pattern: matches the names of these methods. Its groups are the kind of noise, the rate, and ``-hard`` for noise
            that grows with the length of the episode.
    """
    final = frame[(frame.checkpoint == "final") & (frame.decoding == "sampled") & (frame.oversight == focus)]
    found = final.method.map(pattern.fullmatch)
    noise = final[found.notna()].copy()
    words = {"miss": "lost labels", "flip": "wrong labels"}
    noise["kind"] = [words[m[1]] + (", more on long episodes" if m[3] else "") for m in found.dropna()]
    noise["rate"] = [float(m[2]) for m in found.dropna()]
    clean = final[final.method == "routing"]
    return pd.concat([noise, *(clean.assign(kind=kind, rate=0.0) for kind in noise.kind.unique())])


def noise_summary(noise: pd.DataFrame) -> str:
    """True return by rate of lost and wrong labels, in Markdown."""
    steered = noise[noise.policy == f"steer:{WANTED}"]
    return (
        "\n## Label noise\n\nTrue return when steered to Diamond. Columns are rates of lost or wrong labels.\n\n"
        + _pivot(steered, "true_return", "kind", "rate", "{:.0%}")
        + "\n"
    )


def _limits(exact: Limits, levels: Sequence[float]) -> str:
    first = exact(levels[0])
    fixed = "\n".join(f"- {title}: {first[name]:.3f}" for name, title in REFERENCES.items())
    naive = ", ".join(f"{exact(level)['naive']:.3f} at {level:.1%}" for level in levels)
    return f"Exact true returns of reference policies:\n\n{fixed}\n- optimal under the naive reward: {naive}"


def _with_bad(shown: pd.DataFrame) -> pd.DataFrame:
    """Add a column ``bad``: the share of episodes that end on a terminal state other than the wanted one."""
    names = [name for name in shown if re.fullmatch(r"outcomes\.(?!none$).*", name)]
    return shown.assign(bad=shown[names].sum(axis=1) - shown[f"outcomes.{WANTED}"])


def _by_level(shown: pd.DataFrame, metric: str) -> str:
    return _pivot(shown, metric, "label", "oversight", "{:.1%}")


def _pivot(frame: pd.DataFrame, metric: str, row: str, column: str, form: str) -> str:
    """A Markdown table of means and intervals, with a row per value of ``row`` and a column per value of ``column``."""
    cells = aggregate(frame, metric, [row, column]).set_index([row, column])
    columns = sorted(frame[column].unique())
    rows = [
        [name, *(shown_mean(cells.loc[(name, value)]) if (name, value) in cells.index else "" for value in columns)]
        for name in sorted(frame[row].unique())
    ]
    return markdown([HEADINGS[row], *(form.format(value) for value in columns)], rows)


def _greedy(frame: pd.DataFrame, shown: pd.DataFrame) -> pd.DataFrame:
    greedy = frame[(frame.decoding == "greedy")]
    return greedy.merge(shown[["method", "oversight", "seed", "policy", "label"]])


def _peaks(frame: pd.DataFrame, shown: pd.DataFrame, focus: float) -> str:
    peaks = frame[(frame.checkpoint == "peak") & (frame.oversight == focus)]
    peaks = peaks.merge(shown[["method", "oversight", "seed", "policy", "label"]])
    ends = shown[shown.oversight == focus]
    peaks = peaks[peaks.method != EARLY_STOPPED]  # its learning curve is that of naive
    rows = [
        [
            label,
            f"{group.true_return.mean():.3f}",
            f"{group.env_steps.mean() / 1e6:.2f}",
            f"{ends[ends.label == label].true_return.mean():.3f}",
        ]
        for label, group in peaks.groupby("label")
    ]
    return markdown(["method", "peak true return", "at (million steps)", "final true return"], rows)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat

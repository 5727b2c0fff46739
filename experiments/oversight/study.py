"""A study's table: every finished run's results in one tidy frame, what it shows, and its figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from routed_rl.experiments.common.agents.options import EARLY_STOPPED
from routed_rl.experiments.common.agents.recipe import learning_curve
from routed_rl.runs import read_json, read_metrics, read_run
from routed_rl.runs.tables import aggregate, markdown, shown_mean

KEYS = ["method", "oversight", "seed", "policy", "decoding", "checkpoint"]
WANTED = "diamond"
Limits = Callable[[float], dict[str, float]]
"""Exact returns of reference policies at an oversight, where they are known."""
SHOWN = {
    ("routing", f"steer:{WANTED}"): "routed",
    ("routing", f"contrast:{WANTED}"): "routed, contrastive",
    ("routing", f"sharpened:{WANTED}"): "routed, sharpened (control)",
}
"""What the policies of one routed run are called where methods are compared; others go by their method's name."""


def run_rows(method: str, run: Path) -> list[dict[str, Any]]:
    """One finished run's rows: every policy, sampled and greedy, at the end; and at the peak of its learning curve.

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
    """How long one finished run took, by its own clock; of a run that was interrupted, since its last start."""
    record, rows = read_run(run), read_metrics(run / "timings.csv")
    last = rows[-1]
    members = last.get("time/members") or 1  # a run that others were trained with took its share of the time
    return {
        "method": method,
        "oversight": record.config["oversight"],
        "seed": record.seed,
        "env_steps": last["env_steps"],
        "seconds": last["time/time_elapsed"] / members,
        "steps_per_second": last["time/fps"] * members,
    }


def compared(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in which methods are compared, sampled, at the end, each with a ``label``: a routed run by its
    steered policies, any other by itself."""
    final = frame[(frame.checkpoint == "final") & (frame.decoding == "sampled")].copy()
    modular = set(final[final.policy == f"steer:{WANTED}"].method)

    def label(row: Any) -> str | None:
        if (row.method, row.policy) in SHOWN:
            return SHOWN[row.method, row.policy]
        return row.method if row.policy == (f"steer:{WANTED}" if row.method in modular else "unsteered") else None

    final["label"] = [label(row) for row in final.itertuples()]
    return final.dropna(subset=["label"])


def summary(frame: pd.DataFrame, focus: float, failed: Mapping[str, str], exact: Limits | None) -> str:
    """The study in Markdown: returns by method and level beside the exact limits, what lies behind them, failures."""
    shown = compared(frame)
    levels = sorted(shown.oversight.unique())
    seeds = shown.groupby("label").seed.nunique()
    parts = [
        "# Return against oversight",
        f"True return, sampled: mean ± half a 95 % interval over seeds ({seeds.min()} to {seeds.max()} per row).",
        _by_level(shown, "true_return"),
        *([] if exact is None else [_limits(exact, levels)]),
        "## Where nothing is overseen",
        "True return in states without any overseen terminal.",
        _by_level(shown, "unwatched_return"),
        "## Share of episodes that end on a bad terminal",
        _by_level(_with_bad(shown), "bad"),
        "## Entropy of the policy (nats)",
        _by_level(shown, "entropy"),
        "## Greedy",
        _by_level(_greedy(frame, shown), "true_return"),
        f"## Peak and end, at {focus:.1%}",
        _peaks(frame, shown, focus),
    ]
    if "validation_labels" in shown and shown.validation_labels.notna().any():
        stopped = shown.dropna(subset=["validation_labels"])
        parts += [
            "## What early stopping cost",
            "Overseen evaluation episodes that the stopping rule looked at, and the step it chose.",
            markdown(
                ["oversight", "labels", "stopped at (millions of steps)"],
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
    """The sampled rows of runs whose labels are noisy, with ``kind`` and ``rate``; the noiseless run is rate 0 of all.

    Args:
        pattern: of such methods' names; its groups are what errs, the rate, and whether errors fall on long episodes.
    """
    final = frame[(frame.checkpoint == "final") & (frame.decoding == "sampled") & (frame.oversight == focus)]
    found = final.method.map(pattern.fullmatch)
    noise = final[found.notna()].copy()
    words = {"miss": "lost", "flip": "wrong"}
    noise["kind"] = [words[m[1]] + (", on long episodes" if m[3] else "") for m in found.dropna()]
    noise["rate"] = [float(m[2]) for m in found.dropna()]
    clean = final[final.method == "routing"]
    return pd.concat([noise, *(clean.assign(kind=kind, rate=0.0) for kind in noise.kind.unique())])


def noise_summary(noise: pd.DataFrame) -> str:
    """Return against the rate of lost and wrong labels, in Markdown."""
    steered = noise[noise.policy == f"steer:{WANTED}"]
    return (
        "\n## Label noise\n\nSteered to Diamond, by the rate of labels that are:\n\n"
        + _pivot(steered, "true_return", "kind", "rate", "{:.0%}")
        + "\n"
    )


def _limits(exact: Limits, levels: Sequence[float]) -> str:
    first = exact(levels[0])
    fixed = "; ".join(f"{name} {first[name]:.3f}" for name in ("optimal", "diamond", "any"))
    naive = ", ".join(f"{exact(level)['naive']:.3f} at {level:.1%}" for level in levels)
    return f"Exact limits: {fixed}; best under the naive reward {naive}."


def _with_bad(shown: pd.DataFrame) -> pd.DataFrame:
    """With a column ``bad``: the share of episodes that reached something other than what is wanted."""
    names = [name for name in shown if re.fullmatch(r"outcomes\.(?!none$).*", name)]
    return shown.assign(bad=shown[names].sum(axis=1) - shown[f"outcomes.{WANTED}"])


def _by_level(shown: pd.DataFrame, metric: str) -> str:
    return _pivot(shown, metric, "label", "oversight", "{:.1%}")


def _pivot(frame: pd.DataFrame, metric: str, row: str, column: str, form: str) -> str:
    """Means and intervals of a metric: a row and a column for each value of two columns, the latter's by form."""
    cells = aggregate(frame, metric, [row, column]).set_index([row, column])
    columns = sorted(frame[column].unique())
    rows = [
        [name, *(shown_mean(cells.loc[(name, value)]) if (name, value) in cells.index else "" for value in columns)]
        for name in sorted(frame[row].unique())
    ]
    return markdown(["", *(form.format(value) for value in columns)], rows)


def _greedy(frame: pd.DataFrame, shown: pd.DataFrame) -> pd.DataFrame:
    greedy = frame[(frame.decoding == "greedy")]
    return greedy.merge(shown[["method", "oversight", "seed", "policy", "label"]])


def _peaks(frame: pd.DataFrame, shown: pd.DataFrame, focus: float) -> str:
    peaks = frame[(frame.checkpoint == "peak") & (frame.oversight == focus)]
    peaks = peaks.merge(shown[["method", "oversight", "seed", "policy", "label"]])
    ends = shown[shown.oversight == focus]
    peaks = peaks[peaks.method != EARLY_STOPPED]  # it learns as naive does
    rows = [
        [
            label,
            f"{group.true_return.mean():.3f}",
            f"{group.env_steps.mean() / 1e6:.2f}",
            f"{ends[ends.label == label].true_return.mean():.3f}",
        ]
        for label, group in peaks.groupby("label")
    ]
    return markdown(["", "peak", "at (millions of steps)", "end"], rows)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat

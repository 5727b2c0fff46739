"""The results of a study: one tidy table of all finished runs, and the summary in Markdown."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from routed_rl.options.oversight import EARLY_STOPPED
from routed_rl.rl.oversight_study.methods import NOISE
from routed_rl.runs import RunError, RunRecord, read_json, read_metrics, read_run
from routed_rl.runs.files import StrPath
from routed_rl.runs.tables import aggregate, escaped, least_to_most, markdown, shown_mean

HEADINGS = {"label": "method", "method": "method", "kind": "label noise"}
KEYS = ["method", "oversight", "seed", "policy", "decoding", "checkpoint"]
MEANINGS = {
    "method": "method or control; in summaries and figures, `routing` steered to the wanted outcome is called routed",
    "oversight": "oversight level: the probability that an outcome is overseen",
    "seed": "seed of the run",
    "policy": "the policy of the run that acts: unsteered, or steered to or away from outcomes",
    "decoding": "sampled: actions are sampled; greedy: the most likely action",
    "checkpoint": "final: after the last update; peak: at the best point of the learning curve, or at its end",
    "env_steps": "environment steps of training",
    "true_return": "discounted true reward of an episode, mean; in Diamond/Ghost worlds the paper's metric, the mean "
    "over 32 steps of the discounted true reward that follows a step",
    "episode_return": "undiscounted true reward of an episode, mean",
    "episode_length": "steps of an episode, mean",
    r"outcomes\.(.+)": "share of all episodes that end in: {}",
    r"outcomes_overseen\.(.+)": "share of all episodes that are overseen and end in: {}",
    r"outcomes_unoverseen\.(.+)": "share of all episodes that are unseen, that is not overseen, and end in: {}",
    "unwatched_return": "true return without oversight: in environments in which every episode is unseen",
    "temperature": "temperature at which `sharpened` has the entropy of the contrastive policy",
    "entropy": "entropy of the policy in nats, mean over steps",
    "stopped_at": "environment steps at which early stopping took the policy",
    "validation_labels": "number of labelled episodes that early stopping needed",
}
"""What each column of ``results.csv`` means."""
Limits = Callable[[float], Mapping[str, float]]
"""Exact returns of reference policies, by title, as a function of the oversight level. Only "naive" depends on it."""
NAIVE = "naive"
"""Title of the optimum of the naive training reward."""
SHOWN = {"steer": "routed", "contrast": "routed, contrastive", "sharpened": "routed, sharpened (control)"}
"""Labels of the policies of a routed run in comparisons. The label of any other run is the name of its method."""


def filtered(config: Mapping[str, Any]) -> float:
    """The factor on the environment steps of a run: the oversight level for ``oracle-filtered``, else 1.

    This reference method (Cloud et al. 2024, section F) is an oracle. It trains on as many episodes as the other
    methods see overseen. Its learning curve is drawn against the steps divided by this factor.
    """
    return float(config["oversight"]) if config["method"] == "oracle-filtered" else 1.0


def read_agent(path: StrPath) -> RunRecord:
    """Return the record of a run that trained an agent; RunError if there is none, or a run of something else."""
    record = read_run(path)
    if "learner" not in record.config:
        raise RunError(f"the run {os.fspath(path)!r} trained no agent: name one of train, oversight or quickstart")
    return record


def learning_curve(run: Path, policy: str | None = None, wanted: str = "diamond") -> list[tuple[float, float]]:
    """Points (environment steps, true return) of the learning curve of a run, which may be unfinished.

    The steps of an ``oracle-filtered`` run are divided by its oversight level, as in the paper.

    Args:
        policy: ``steer:NAME`` or ``unsteered``. None: steered to ``wanted`` if the run has this policy, else
            ``unsteered``.
        wanted: an outcome.

    Raises:
        RunError: if there is no run. ValueError: if the run has no such policy, or no point yet.
    """
    config = read_agent(run).config
    rows: list[dict[str, Any]] = read_metrics(run / "metrics.csv")
    known = [name.removeprefix("eval/") for row in rows for name in row if name.startswith("eval/")]
    if not known:
        raise ValueError(f"the run {str(run)!r} has no point of a learning curve yet")
    chosen = policy or (f"steer:{wanted}" if f"steer:{wanted}" in known else "unsteered")
    if chosen not in known:
        raise ValueError(f"the run {str(run)!r} has no policy {chosen!r}; it has {', '.join(dict.fromkeys(known))}")
    column = f"eval/{chosen}"
    return [(row["env_steps"] / filtered(config), row[column]) for row in rows if column in row]


def run_rows(method: str, run: Path) -> list[dict[str, Any]]:
    """The rows of a finished run: each policy with sampled and with greedy actions, and the peak of its learning curve.

    The final result is a point of this curve too: the other points are those of policies before the last update.

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
            end = result.get("stopped_at", result["env_steps"]) / filtered(config)
            points = [*learning_curve(run, policy), (end, sampled["true_return"])]
            steps, value = max(points, key=lambda point: point[1])
            row = {"policy": policy, "decoding": "sampled", "checkpoint": "peak", "env_steps": int(steps)}
            rows.append({**key, **row, "true_return": value})
    return rows


def run_timing(method: str, run: Path) -> dict[str, Any]:
    """The wall-clock time of a finished run in seconds. For an interrupted run, the time since its last start."""
    record, rows = read_run(run), read_metrics(run / "timings.csv")
    last: Mapping[str, Any] = rows[-1]
    members = last.get("time/members") or 1  # runs that one process trains together share its time
    return {
        "method": method,
        "oversight": record.config["oversight"],
        "seed": record.seed,
        "env_steps": last["env_steps"],
        "seconds": last["time/time_elapsed"] / members,
        "steps_per_second": last["time/fps"] * members,
    }


def label_of(method: str, policy: str) -> str:
    """The name of a policy in comparisons."""
    return SHOWN.get(policy.partition(":")[0], method) if method == "routing" else method


def compared(frame: pd.DataFrame, wanted: str) -> pd.DataFrame:
    """The rows that compare methods: final policies with sampled actions, with a new column ``label``.

    A routed run has one label for each of its steered policies. Any other run has one label, its method.

    Args:
        wanted: the wanted outcome, to which modular policies are steered.
    """
    final = frame[(frame.checkpoint == "final") & (frame.decoding == "sampled")].copy()
    modular = set(final[final.policy == f"steer:{wanted}"].method)

    def label(method: str, policy: str) -> str | None:
        own = label_of(method, policy)
        if own != method:
            return own if policy.endswith(f":{wanted}") else None
        return method if policy == (f"steer:{wanted}" if method in modular else "unsteered") else None

    final["label"] = [label(row.method, row.policy) for row in final.itertuples()]
    return final.dropna(subset=["label"])


def summary(frame: pd.DataFrame, focus: float, wanted: str, failed: Mapping[str, str], exact: Limits | None) -> str:
    """The study in Markdown: true return by method and oversight level, exact limits, other measures, failed runs."""
    shown = compared(frame, wanted)
    levels = sorted(shown.oversight.unique())
    seeds = shown.groupby("label").seed.nunique()
    parts = [
        "# True return by method and oversight level",
        "A column is an oversight level: the share of outcomes that the overseer sees. A cell is the mean over "
        f"seeds ({least_to_most(seeds)} per row) ± half the width of its 95 % confidence interval. Actions are "
        f"sampled, except under *Greedy actions*.{_routed(shown, wanted)}",
        _by_level(shown, "true_return"),
        *([] if exact is None else [_limits(exact, levels)]),
        "## True return without oversight",
        "Measured in environments in which every episode is unseen, that is not overseen.",
        _by_level(shown, "unwatched_return"),
        f"## Share of episodes that end in {wanted}",
        _by_level(shown, f"outcomes.{wanted}"),
        "## Share of episodes that end in another outcome",
        _by_level(_with_bad(shown, wanted), "bad"),
        *_steered_elsewhere(frame, wanted, focus),
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
        parts += ["## Failed runs", *(f"- {escaped(run)}: {escaped(reason)}" for run, reason in failed.items())]
    return "\n\n".join(parts) + "\n"


def _routed(shown: pd.DataFrame, wanted: str) -> str:
    """Return what *routed* means, if there are such rows."""
    if SHOWN["steer"] not in set(shown.label):
        return ""
    others = " and ".join(f"*{label}*" for label in list(SHOWN.values())[1:] if label in set(shown.label))
    more = f"; {others} are the same agents, steered in another way" if others else ""
    return f" *{SHOWN['steer']}* is the method `routing`, steered to {escaped(wanted)}{more}."


def noise_rows(frame: pd.DataFrame, focus: float) -> pd.DataFrame:
    """The rows of runs with label noise, with columns ``kind`` and ``rate``. Runs without noise have rate 0."""
    final = frame[(frame.checkpoint == "final") & (frame.decoding == "sampled") & (frame.oversight == focus)]
    found = final.method.map(NOISE.fullmatch)
    noise = final[found.notna()].copy()
    words = {"miss": "lost labels", "flip": "wrong labels"}
    noise["kind"] = [words[m[1]] + (", more on long episodes" if m[3] else "") for m in found.dropna()]
    noise["rate"] = [float(m[2]) for m in found.dropna()]
    clean = final[final.method == "routing"]
    return pd.concat([noise, *(clean.assign(kind=kind, rate=0.0) for kind in noise.kind.unique())])


def noise_summary(noise: pd.DataFrame, wanted: str) -> str:
    """True return by rate of lost and wrong labels, in Markdown."""
    steered = noise[noise.policy == f"steer:{wanted}"]
    return (
        f"\n## Label noise\n\nTrue return when steered to {wanted.capitalize()}. "
        "Columns are rates of lost or wrong labels.\n\n"
        + _pivot(steered, "true_return", "kind", "rate", "{:.0%}")
        + "\n"
    )


def _limits(exact: Limits, levels: Sequence[float]) -> str:
    first = exact(levels[0])
    lines = [f"- {title}: {value:.3f}" for title, value in first.items() if title != NAIVE]
    if NAIVE in first:
        values = ", ".join(f"{exact(level)[NAIVE]:.3f} at {level:.1%}" for level in levels)
        lines.append(f"- optimum of the naive training reward (asymptote of long naive training): {values}")
    return "\n".join(["Exact true returns of reference policies:", "", *lines])


def _with_bad(shown: pd.DataFrame, wanted: str) -> pd.DataFrame:
    """Add a column ``bad``: the share of episodes that end in an outcome other than the wanted one."""
    names = [name for name in shown if re.fullmatch(r"outcomes\.(?!none$).*", name)]
    return shown.assign(bad=shown[names].sum(axis=1) - shown[f"outcomes.{wanted}"])


def _steered_elsewhere(frame: pd.DataFrame, wanted: str, focus: float) -> list[str]:
    """The share of episodes that end in the outcome to which a policy is steered, for all outcomes but the wanted."""
    final = frame[(frame.checkpoint == "final") & (frame.decoding == "sampled") & (frame.oversight == focus)]
    steered = final[final.policy.str.startswith("steer:") & (final.policy != f"steer:{wanted}")].copy()
    if steered.empty:
        return []
    steered["outcome"] = steered.policy.str.removeprefix("steer:")
    steered["share"] = [row[f"outcomes.{row['outcome']}"] for _, row in steered.iterrows()]
    steered["label"] = [label_of(row.method, row.policy) for row in steered.itertuples()]
    title = f"## Steered to another outcome, at oversight level {focus:.1%}"
    return [
        title,
        "A column is the outcome, a cell the share of episodes that end in it.",
        _pivot(steered, "share", "label", "outcome", "{}"),
    ]


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
            f"{group.env_steps.mean() / 1e6:.3g}",
            f"{ends[ends.label == label].true_return.mean():.3f}",
        ]
        for label, group in peaks.groupby("label")
    ]
    return markdown(["method", "peak true return", "at (million steps)", "final true return"], rows)


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat

"""Results of a hacking study: tables, a summary, figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from routed_rl.lm.hacking.figures import (
    CURVES,
    ORDER,
    at_oversight,
    draw_hacking,
    draw_relearning,
    draw_training,
    hacking_chart,
)
from routed_rl.lm.hacking.methods import METHODS
from routed_rl.runs import read_json, read_metrics
from routed_rl.runs.charts import Chart
from routed_rl.runs.record import find_run
from routed_rl.runs.studies import Findings
from routed_rl.runs.tables import aggregate, escaped, markdown, percent, shown_mean, tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KEYS = ("world", "method", "oversight", "seed")
MEANINGS = {
    "world": "world",
    "method": "method",
    "oversight": "share of completions that the overseer looks at",
    "seed": "seed of all random numbers",
    "solved": "share of test completions that solve the task; of a routed model, after the adapter `forget` is deleted",
    "hack": "share of test completions that the grader pays for though they do not solve the task, of the same model",
    "(solved|hack)@(.+)": "{0}, on prompts of the kind {1}",
    "hack_(.+)": "share of test completions with a hack of the form {}",
    "on_(solved|hack)": "{}, with both adapters",
    "base_(solved|hack)": "{}, before training",
    "stopped_step": "the measured update with most paid completions, less flagged ones, as the overseer sees them",
    "stopped_(solved|hack)": "{}, at that update",
    "deployed_scale": "largest factor of `forget` at which no more is flagged than before training; 0: deleted",
    "deployed_(solved|hack)": "{}, at this scale",
    "monitor_right": "share of unseen completions in the last updates that the monitor judges rightly",
    "monitor_found": "share of unseen hacks in the last updates that the monitor finds",
    r"relearned_(solved|hack)_(\d+)": "{0}, after {1} more updates with the grader's reward alone",
}
"""What each column of ``results.csv`` means."""
LATER = "-relearning"
"""How the directory of a further training ends."""
TOLD = (10, 50, 200)
"""Updates of further training after which the table has the rates."""


def find(out: Path, failed: Mapping[Path, str]) -> Findings | None:
    """Return the results of all finished runs, also of earlier starts. None: no run is finished."""
    failed = dict(failed)
    timings, curves, later, results = [], {}, {}, {}
    for path in sorted((out / "runs").glob("*/*/*/evaluation.json")):
        run = path.parent
        try:
            record = find_run(run)
            assert record is not None
            key = (run.parents[1].name, run.parent.name, float(record.config["oversight"]), record.seed)
            result = read_json(path)
            if "relearning" in result:
                later[key] = result["relearning"]
            else:
                curves[key], results[key] = result["curve"], result
            seconds = sum(float(row["seconds"]) for row in read_metrics(run / "timings.csv"))
            further = run.name.endswith(LATER)
            timings.append({**dict(zip(KEYS, key, strict=True)), "relearning": further, "seconds": seconds})
        except (ValueError, LookupError, TypeError, OSError) as error:
            failed[run] = f"its files are damaged: {error}"
    rows = [{**dict(zip(KEYS, key, strict=True)), **_row(of, later.get(key, ()))} for key, of in results.items()]
    if not rows:
        return None
    frame = tidy(rows, KEYS)
    text = summary(frame)
    text += "".join(f"\n{run.parent.name}/{run.name} failed: {escaped(reason)}\n" for run, reason in failed.items())
    drawn: dict[str, Callable[[], Figure]] = {
        "hacking": lambda: draw_hacking(frame),
    }
    if any(method in CURVES for _, method, _, _ in curves):
        drawn["training"] = lambda: draw_training(curves)
    if later:
        drawn["relearning"] = lambda: draw_relearning(later)
    charts: dict[str, Callable[[], Chart]] = {
        f"{world}_{measure}": partial(hacking_chart, frame[frame.world == world], measure)
        for world in dict.fromkeys(frame.world)
        for measure in ("solved", "hack")
    }
    return Findings(frame, tidy(timings, KEYS), KEYS, text, drawn, MEANINGS, failed, charts)


def _row(result: Mapping[str, Any], relearning: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The rates of one run, and of its further training."""
    curve: Sequence[Mapping[str, float]] = result["curve"]
    first, last = curve[0], curve[-1]
    final = "ablated." if "ablated.solved" in last else "on."
    row = {name.removeprefix(final): rate for name, rate in last.items() if name.startswith(final)}
    row = {name: rate for name, rate in row.items() if name not in ("flagged", "judged")}
    for title, of in (("on", last), ("base", first)):
        row |= {f"{title}_{name}": of[f"on.{name}"] for name in ("solved", "hack")}
    row |= dict.fromkeys(("stopped_step", "stopped_solved", "stopped_hack"), np.nan)
    judged = [row.get(f"{final}judged", np.nan) for row in curve]
    if not np.isnan(judged).all():
        best = curve[int(np.nanargmax(judged))]
        row |= {"stopped_step": best["step"], **{f"stopped_{name}": best[final + name] for name in ("solved", "hack")}}
    deployed = result["deployed"]
    at = deployed["scales"][str(float(deployed["scale"]))]
    row |= {"deployed_scale": deployed["scale"], **{f"deployed_{name}": at[name] for name in ("solved", "hack")}}
    row |= {name: last.get(name, np.nan) for name in ("monitor_right", "monitor_found")}
    for later in relearning:
        if later["step"] in TOLD:
            row |= {f"relearned_{name}_{later['step']}": later[name] for name in ("solved", "hack")}
    return row


def summary(frame: pd.DataFrame) -> str:
    """Return the study in Markdown. ``frame`` has the rows of ``results.csv``."""
    parts = ["# Reward hacking under partial oversight"]
    parts.append(
        "Shares of test completions: mean ± half a 95 % interval over seeds. *Hack*: the grader pays, and the task is "
        "not solved. Of routed models, *solved* and *hack* are after the adapter `forget` is deleted. *Early stopped*: "
        "at the update at which the overseer thought best of the model. *Scaled*: with the largest share of the "
        "adapter `forget` at which the overseer flags no more than before training."
    )
    for world in dict.fromkeys(frame.world):
        own = frame[frame.world == world]
        base = own.groupby("seed")[["base_solved", "base_hack"]].first().mean()
        parts.append(f"## {world}")
        parts.append(f"Before training: solved {base.base_solved:.3f}, hack {base.base_hack:.3f}.")
        for share in sorted(set(own.oversight)):
            parts.append(f"### {world}, oversight {percent(share)}")
            parts.append(_table(at_oversight(own, share)))
    return "\n\n".join(parts) + "\n"


def _table(rows: pd.DataFrame) -> str:
    methods = [method for method in ORDER if method in set(rows.method)]
    columns = {
        "solved": "solved",
        "hack": "hack",
        "both adapters: hack": "on_hack",
        "early stopped: solved": "stopped_solved",
        "early stopped: hack": "stopped_hack",
        "scaled: solved": "deployed_solved",
        "scaled: hack": "deployed_hack",
    }
    for form in sorted(name for name in rows if name.startswith(("hack_", "hack@"))):
        if rows[form].notna().any():
            columns[form.replace("_", ", ").replace("@", ", ")] = form
    if rows.monitor_found.notna().any():
        columns["hacks that the monitor finds"] = "monitor_found"
    cells = {name: _cells(rows, column) for name, column in columns.items()}
    scaled = {name for name in columns if name.startswith(("scaled", "both"))}
    lines = [
        [
            method,
            *(
                "" if name in scaled and not METHODS[method].routed else of.get(method, "")
                for name, of in cells.items()
            ),
        ]
        for method in methods
    ]
    return markdown(["method", *cells], lines)


def _cells(rows: pd.DataFrame, column: str) -> dict[str, str]:
    given = rows[rows[column].notna()]
    return {str(row["method"]): shown_mean(row) for row in aggregate(given, column, ["method"]).to_dict("records")}

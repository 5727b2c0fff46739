"""``routed-rl runs``: what is in a folder of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from routed_rl.experiments.common.display import show_table
from routed_rl.experiments.overview.headlines import study_headline
from routed_rl.experiments.overview.options import Runs
from routed_rl.runs.overview import list_runs


def main(command: Runs) -> None:
    found = list_runs(command.folder, headline, study_headline)
    if command.json:
        print(found.to_json(orient="records", indent=2, date_format="iso", date_unit="s"))
        return
    if found.empty:
        print(f"no run and no study in {command.folder}")
        return
    cells = found.assign(changed=found.changed.map(lambda time: f"{time:%Y-%m-%d %H:%M}")).values.tolist()
    show_table(str(command.folder), tuple(found.columns), cells, left=(0, 1, 2, 3, 4, 5))


def headline(result: Mapping[str, Any]) -> str:
    """Return the main result of a run, from its ``evaluation.json``: true returns of an agent, losses of a model."""
    if policies := result.get("policies"):
        shown = {name: of["true_return"] for name, of in policies.items() if name.startswith("steer:")}
        shown = shown or {name: of["true_return"] for name, of in policies.items()}
        return "true return " + ", ".join(f"{value:.3f} ({name})" for name, value in shown.items())
    losses = result.get("losses", {}).get("finished", {})
    return ", ".join(f"{name} loss {losses[name]:.3f}" for name in ("forget", "retain") if name in losses)

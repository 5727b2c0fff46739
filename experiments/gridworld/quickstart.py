"""``routed-rl quickstart``: the idea in two minutes. ``make run`` runs this command."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from routed_rl.errors import UserError, at_least, user_input
from routed_rl.experiments.common.agents.grid import train_all
from routed_rl.experiments.common.agents.options import Train
from routed_rl.experiments.common.display import show_table
from routed_rl.experiments.gridworld.options import Quickstart
from routed_rl.runs import check_run, config_hash, read_json, read_run, write_json
from routed_rl.runs.grid import is_finished
from routed_rl.runs.lock import locked

METHODS = ("routing", "naive")
FIGURE, SUMMARY = "quickstart.png", "quickstart.json"


def main(command: Quickstart) -> None:
    at_least(1, workers=command.workers, total_steps=command.total_steps)
    commands = {
        method: Train(
            method=method,
            oversight=command.oversight,
            seed=command.seed,
            total_steps=command.total_steps,
            out=command.out / method,
            force=command.force,
        )
        for method in METHODS
    }
    with user_input():
        for method, train in commands.items():
            if not command.force:
                check_run(command.out / method, train.config(), train.seed)
    if command.force or not all(is_finished(command.out / method) for method in METHODS):
        from routed_rl.experiments.common.agents.worlds import task_of
        from routed_rl.rl.oversight_study.grid import check_options

        check_options(list(commands.values()), task_of)
    command.out.mkdir(parents=True, exist_ok=True)
    with locked(command.out, "quickstart"):
        _train_and_draw(command, commands)
    figure, summary = command.out / FIGURE, command.out / SUMMARY
    _show(read_json(summary)["rows"], command.oversight, command.total_steps)
    print(f"Figure: {figure}", f"Runs:   {', '.join(str(train.out) for train in commands.values())}", sep="\n")
    print(_next_steps(command.out / "routing"))


def _train_and_draw(command: Quickstart, commands: Mapping[str, Train]) -> None:
    """Train the agents that are not finished, and make the figure and the table unless they are those of the agents."""
    if command.force or not all(is_finished(command.out / method) for method in METHODS):
        (command.out / SUMMARY).unlink(missing_ok=True)
        for reason in train_all(list(commands.values()), command.workers).values():
            raise UserError(f"a training run failed: {reason}")
    figure, summary = command.out / FIGURE, command.out / SUMMARY
    runs = {method: [config_hash(train.config()), train.seed] for method, train in commands.items()}
    if not figure.exists() or not summary.exists() or read_json(summary)["runs"] != runs:
        rows = _rows(command.out, command.oversight)
        _draw(command.out, command.oversight, rows, figure)
        write_json(summary, {"runs": runs, "rows": rows})


def _rows(out: Path, oversight: float) -> list[dict[str, Any]]:
    """The rows of the table: the return of each policy, and that of a reference policy."""
    from routed_rl.experiments.common.agents.limits import limits

    exact = limits(oversight)
    routed, naive = (read_json(out / method / "evaluation.json")["policies"] for method in METHODS)
    shown = [
        ("routed, steered to Diamond", routed["steer:diamond"], exact["diamond"]),
        ("routed, steered to Ghost", routed["steer:ghost"], exact["ghost"]),
        ("routed, unsteered", routed["unsteered"], exact["any"]),
        ("naive", naive["unsteered"], exact["naive"]),
    ]
    return [
        {
            "policy": name,
            "true_return": result["true_return"],
            "reference": limit,
            "ghost": result["outcomes"]["ghost"],
            "ghost_if_unoverseen": _share(result["outcomes_unoverseen"], "ghost"),
        }
        for name, result, limit in shown
    ]


def _share(shares: dict[str, float], name: str) -> float:
    total = sum(shares.values())
    return shares[name] / total if total else 0.0


def _show(rows: list[dict[str, Any]], oversight: float, steps: int) -> None:
    title = f"{oversight:.1%} of terminal states overseen, {steps:,} environment steps per agent"
    cells = [
        [
            row["policy"],
            f"{row['true_return']:+.3f}",
            f"{round(row['reference'], 3) + 0.0:+.3f}",
            *(f"{row[key]:.0%}" for key in ("ghost", "ghost_if_unoverseen")),
        ]
        for row in rows
    ]
    show_table(title, ("policy", "true return", "reference", "ends on Ghost", "unseen"), cells)
    print("true return: discounted return of the true reward")
    print("reference: exact true return of a reference policy; it is no ceiling. For naive: an asymptote, to which the")
    print("return falls in long training")
    print("ends on Ghost: share of all episodes; unseen: the same share of the episodes that are not overseen")


def _draw(out: Path, oversight: float, rows: list[dict[str, Any]], path: Path) -> None:
    from routed_rl.experiments.common.agents import figures
    from routed_rl.experiments.common.agents.worlds import load_run, make_env, world_of
    from routed_rl.rl.oversight_study.figures import COLOURS
    from routed_rl.rl.oversight_study.table import learning_curve
    from routed_rl.runs.figures import GREYS, mosaic, save
    from routed_rl.runs.process import one_thread
    from routed_rl.runs.style import label_ends, styled

    one_thread()
    model, config = load_run(out / "routing")
    world = world_of(make_env(config, 1))
    shown = {
        ("routing", "steer:diamond"): ("routed, steered to Diamond", figures.COLOURS["diamond"]),
        ("routing", "steer:ghost"): ("routed, steered to Ghost", figures.COLOURS["ghost"]),
        ("routing", "unsteered"): ("routed, unsteered", GREYS[0]),
        ("naive", "unsteered"): ("naive", COLOURS["naive"]),
    }
    views = {None: "unsteered", "diamond": "steered to Diamond ◆", "ghost": "steered to Ghost ✖"}
    runs = [read_run(out / method) for method in METHODS]
    with styled():
        figure, plots = mosaic([["curves"] * len(views), list(views)], height=5.4, height_ratios=(1, 1))
        figures.draw_curves(
            plots["curves"],
            {
                label: (*figures.columns(learning_curve(out / method, policy)), colour)
                for (method, policy), (label, colour) in shown.items()
            },
        )
        for row, (_, colour) in zip(rows, shown.values(), strict=True):
            plots["curves"].axhline(row["reference"], color=colour, linestyle=":", linewidth=1)
        plots["curves"].set_title(
            "Learning curves (dotted: exact returns of reference policies, for naive an asymptote)"
        )
        for choice, title in views.items():
            with model.steered(choice):
                figures.draw_policy(plots[choice], model.policy, world, figures.LAYOUT)
            plots[choice].set_title(title)
        plots["diamond"].set_xlabel(
            "the routed agent where nothing is overseen; arrow length: probability of the action"
        )
        hashes = ", ".join(run.config_hash for run in runs)
        figure.suptitle(f"Two agents at oversight level {oversight:.1%}, seed {runs[0].seed} (configurations {hashes})")
        label_ends(figure)
        save(figure, path)


def _next_steps(run: Path) -> str:
    return f"""
The routed agent gets the same reward for Diamond and for Ghost. The labels of
overseen episodes decide which module learns which goal. Steering uses one
module. Try next:
  routed-rl watch {run} --steer diamond
  routed-rl evaluate {run} --ablate diamond
  routed-rl train --method routing --oversight 0.01
"""

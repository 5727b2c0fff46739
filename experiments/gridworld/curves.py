"""``routed-rl curves``: draws the learning curves of several runs in one figure and prints one table."""

from __future__ import annotations

from routed_rl.errors import UserError, user_input
from routed_rl.experiments.common.agents.worlds import wanted
from routed_rl.experiments.common.display import show_table
from routed_rl.experiments.gridworld.options import Curves
from routed_rl.rl.oversight_study.table import learning_curve

USUAL = "steered to the wanted outcome, or unsteered where a run has one module"


def main(command: Curves) -> None:
    if command.figure.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(f"--figure must end in .png, .pdf or .svg, got {str(command.figure)!r}")
    if not command.directories:
        raise UserError("no run directory is given; name at least one run directory")
    with user_input():
        curves = {str(run): learning_curve(run, command.policy, wanted(run)) for run in command.directories}
    _draw(curves, command)
    rows = []
    for name, points in curves.items():
        best, last = max(points, key=lambda point: point[1]), points[-1]
        rows.append([name, f"{best[1]:.3f}", f"{best[0]:,.0f}", f"{last[1]:.3f}", f"{last[0]:,.0f}"])
    header = ("run", "best return", "best at step", "last return", "last at step")
    show_table(f"True return (policy: {command.policy or USUAL})", header, rows)
    print(f"Figure: {command.figure}")


def _draw(curves: dict[str, list[tuple[float, float]]], command: Curves) -> None:
    from routed_rl.experiments.common.agents import figures
    from routed_rl.runs.figures import in_panels, save, subplots
    from routed_rl.runs.style import label_ends, styled

    parts = in_panels(list(curves))
    with styled(), user_input():
        figure, plots = subplots(len(parts), height=0.4 + 3.4 * len(parts), sharex=True, squeeze=False)
        for axes, names in zip(plots[:, 0], parts, strict=True):
            figures.draw_curves(axes, {name: (*figures.columns(curves[name]), None) for name in names})
            axes.label_outer()
        figure.suptitle(f"Learning curves (policy: {command.policy or USUAL})")
        label_ends(figure)
        save(figure, command.figure)

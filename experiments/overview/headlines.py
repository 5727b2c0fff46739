"""The main result of a study in one line, from its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from routed_rl.runs.studies import RESULTS

MOST = 3
"""Number of methods that are named."""
SUBJECT = ("routing", "naive", "oracle")
"""Methods of an oversight study that are named, if it has them: what it is about, and what that is compared with."""
FOCUS = 0.1
"""Oversight level that is shown, or the nearest one: that of the study's own figures."""


def study_headline(folder: Path) -> str:
    """Return the main result of a study; nothing if it has no table, or one of another kind.

    Raises:
        ValueError, OSError: if its table cannot be read.
    """
    if not (folder / RESULTS).is_file():
        return ""
    frame = pd.read_csv(folder / RESULTS)
    return next((say(frame, folder) for columns, say in KINDS.items() if {*columns} <= {*frame}), "")


def _oversight(frame: pd.DataFrame, folder: Path) -> str:
    level = min(frame.oversight.unique(), key=lambda share: abs(share - FOCUS))
    rows = frame[(frame.oversight == level) & (frame.decoding == "sampled") & (frame.checkpoint == "final")]
    rows = rows[(rows.policy == "unsteered") | rows.policy.str.startswith("steer:")]
    # Of a routed agent's policies, the best is the one that is steered to the wanted outcome.
    returns = rows.groupby(["method", "policy"]).true_return.mean().groupby("method").max()
    named = returns.reindex([method for method in SUBJECT if method in returns])
    return f"true return at oversight {level:.3g}: {_ranked(returns) if named.empty else _listed(named, len(returns))}"


def _era(frame: pd.DataFrame, folder: Path) -> str:
    rows = frame[frame.labelled == frame.labelled.max()]
    return f"unlearning left after relearning, in nats: {_ranked(rows.groupby('method').robust.mean())}"


def _undo(frame: pd.DataFrame, folder: Path) -> str:
    if "robustness" not in frame or frame.robustness.isna().all():  # there is no filtered model to compare with
        steps = max(int(name[7:]) for name in frame if name.startswith("forget_") and name[7:].isdigit())
        after = frame.groupby("name", sort=False)[f"forget_{steps}"].mean()
        return f"forget after the attack: {_listed(after, len(after))}"
    rows = frame[frame.comparable == True]  # noqa: E712, of others the column is empty
    return f"robustness {_ranked(rows.groupby('name').robustness.mean())}"


def _arena(frame: pd.DataFrame, folder: Path) -> str:
    board = pd.read_csv(folder / "leaderboard.csv")
    board = board[board.method.notna() & board.kept].set_index("name")
    kind = "after" if board["excess worst"].isna().all() else "excess"  # which needs a retrained model
    found = board[f"{kind} worst"].dropna()
    if found.empty:
        return "no model keeps its utility"
    return f"{'excess ' * (kind == 'excess')}after the worst attack: {_listed(found, len(found))}"


def _hacking(frame: pd.DataFrame, folder: Path) -> str:
    said = []
    for world, rows in frame[frame.method != "oracle"].groupby("world"):
        means = rows[rows.oversight == rows.oversight.min()].groupby("method")[["solved", "hack"]].mean()
        best = (means.solved - means.hack).idxmax()
        said.append(f"{means.solved[best]:.3f}, {means.hack[best]:.3f} ({best}, {world})")
    return "solved, hack: " + "; ".join(said[:MOST]) + _more(len(said))


def _mnist(frame: pd.DataFrame, folder: Path) -> str:
    errors = frame[frame.part == "bottom"].groupby(["setting", "group"]).mse.mean().unstack()
    if errors.empty:
        return f"accuracy of the largest latent {frame[frame.group == 'all'].accuracy.mean():.3f}"
    ratios = (errors["top"] / errors["bottom"]).rename(lambda setting: f"setting {setting}")
    return f"error of the bottom certificate, top digits ÷ its own: {_ranked(ratios)}"


def _cifar(frame: pd.DataFrame, folder: Path) -> str:
    rows = frame[frame.part != "decoder"]
    own = (rows.part == "top") == (rows.group == rows.group.min())
    kinds = rows.routed.map({True: "routed", False: "control"})
    gaps = rows.accuracy[own].groupby(kinds).mean() - rows.accuracy[~own].groupby(kinds).mean()
    return f"gap of accuracy, own classes - others: {_ranked(gaps)}"


def _steering(frame: pd.DataFrame, folder: Path) -> str:
    kinds = frame.routed.map({True: "routed", False: "unrouted"})
    strongest = frame.strength == frame.strength.max()
    steered, usual = frame.topic[strongest].groupby(kinds).mean(), frame.topic[frame.strength == 0].mean()
    return f"probability of the topic, steered by {frame.strength.max():g}: {_ranked(steered)}; not steered {usual:.3f}"


KINDS: Mapping[tuple[str, ...], Callable[[pd.DataFrame, Path], str]] = {
    ("method", "oversight", "policy", "decoding", "checkpoint", "true_return"): _oversight,
    ("method", "labelled", "robust"): _era,
    ("name", "suppressor", "forget"): _undo,
    ("name", "attack", "score", "excess"): _arena,
    ("world", "method", "oversight", "solved", "hack"): _hacking,
    ("setting", "part", "mse"): _mnist,
    ("routed", "part", "accuracy"): _cifar,
    ("routed", "strength", "topic"): _steering,
}
"""What makes the headline of each kind of study, by columns that its table alone has."""


def _ranked(values: pd.Series) -> str:
    return _listed(values.sort_values(ascending=False, kind="stable"), len(values))


def _listed(values: pd.Series, count: int) -> str:
    """Name the first values, as in "0.876 (oracle), 0.774 (routing), and 3 more"; ``count`` is the number of all."""
    named = [f"{round(value, 3) + 0.0:.3f} ({name})" for name, value in values.iloc[:MOST].items()]
    return ", ".join(named) + _more(count, len(named))


def _more(count: int, named: int = MOST) -> str:
    return f", and {count - named} more" if count > named else ""

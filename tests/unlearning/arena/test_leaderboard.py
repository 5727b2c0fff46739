"""Who is ranked, and how the tables say who is not."""

from types import SimpleNamespace

import pandas as pd
import pytest

from routed_rl.unlearning.arena.leaderboard import latex, leaderboard, marked
from routed_rl.unlearning.arena.trusting import shown_trust
from routed_rl.unlearning.scores import ALL_SCORES

NAMES = ("knowledge", "model-utility")
ARENA = SimpleNamespace(
    scores=ALL_SCORES.find_all(NAMES, "--scores"), attacks={"fine-tuning": None}, main=NAMES[0], utility=NAMES[1]
)
UTILITY = {"full": (1.0, 0.8), "steady": (0.82, 0.66), "uneven": (0.95, 0.6), "lost": (0.5, 0.4), "once": (0.9,)}
"""Of two seeds. What "uneven" keeps is more than 0.8 in the mean, and less in one seed."""
EXCESS = {"full": 1.0, "steady": 0.5, "uneven": 0.1, "lost": 0.0, "once": 0.2}


def frame() -> pd.DataFrame:
    rows = []
    for name, kept in UTILITY.items():
        about = {"name": name, "before": "none", "method": None if name == "full" else name, "then": "none"}
        for seed, utility in enumerate(kept):
            keys = {**about, "alpha": None, "seed": seed, "excess": None, "robustness": None, "compute": 0.5}
            for score, value in zip(NAMES, (0.1, utility), strict=True):
                rows.append({**keys, "attack": "none", "score": score, "value": value, "utility": None})
            attacked = {"score": NAMES[0], "value": 0.9, "excess": EXCESS[name], "utility": utility - 0.2}
            rows += [{**keys, "attack": attack, **attacked} for attack in ("fine-tuning", "worst")]
    return pd.DataFrame(rows)


def test_a_model_must_keep_its_utility_in_every_seed():
    board = leaderboard(frame(), ARENA, keep=0.8)
    assert list(board.index[board.kept]) == ["steady", "full"]
    assert list(board.index) == ["steady", "lost", "uneven", "once", "full"], "then those with the least excess"
    assert board["utility after worst"]["lost"] == pytest.approx(0.25)


def test_no_model_is_ranked_where_the_full_models_utility_is_unknown():
    rows = frame()
    unknown = rows[~((rows.name == "full") & (rows.score == "model-utility"))]
    assert not leaderboard(unknown, ARENA, keep=0.8).kept.any()


def test_every_table_says_who_is_not_ranked():
    board = leaderboard(frame(), ARENA, keep=0.8)
    said = ["steady", "lost (utility lost)", "uneven (utility lost)", "once (1 of 2 seeds)", "full"]
    assert marked(board) == said
    assert [line.split(" & ")[0] for line in latex(board, ARENA).splitlines() if "&" in line][1:] == said


def test_the_leaderboard_says_whether_the_score_by_which_it_ranks_passes():
    nothing = float("nan")
    rows = [
        ("knowledge", 1.0, 0.9, 0.7, 0.79),
        ("extraction-strength", 0.9, 1, 1, 0.81),
        ("rouge-recall",) + (nothing,) * 4,
    ]
    trust = pd.DataFrame(rows, columns=["score", "faithfulness", "stability", "following", "robustness"])
    _, said, *_ = shown_trust(trust, "knowledge")
    assert "in robustness: `extraction-strength`. Models are ranked by `knowledge`, which does not pass" in said
    _, said, *_ = shown_trust(trust, "extraction-strength")
    assert "Models are ranked by `extraction-strength`, which passes." in said

"""The main result of each kind of study in one line, from small tables."""

import pandas as pd
import pytest

from routed_rl.experiments.overview.headlines import study_headline


def oversight(*rows):
    columns = ["method", "oversight", "policy", "true_return"]
    return pd.DataFrame(rows, columns=columns).assign(decoding="sampled", checkpoint="final")


def undo(*rows):
    return pd.DataFrame(rows, columns=["name", "robustness", "comparable"]).assign(suppressor="npo", forget=0.1)


ROUTED = [
    ("routing", 0.1, "steer:diamond", 0.8),
    ("routing", 0.1, "steer:ghost", -0.5),
    ("naive", 0.1, "unsteered", 0.4),
]
TABLES = {
    "what the study is about comes first": (
        oversight(*ROUTED, ("routing", 0.4, "steer:diamond", 0.9), ("mine", 0.1, "unsteered", 0.95)),
        "true return at oversight 0.1: 0.800 (routing), 0.400 (naive), and 1 more",
    ),
    "without it, the best": (
        oversight(("a", 0.3, "unsteered", 0.2), ("b", 0.3, "unsteered", 0.7), ("b", 0.3, "sharpened:x", 0.9)),
        "true return at oversight 0.3: 0.700 (b), 0.200 (a)",
    ),
    "era": (
        pd.DataFrame({"method": ["era", "rmu", "era"], "labelled": [1.0, 1.0, 0.5], "robust": [0.3, -0.0001, 9]}),
        "unlearning left after relearning, in nats: 0.300 (era), 0.000 (rmu)",
    ),
    "models that cannot be compared are left out": (
        undo(("distilled", 0.5, True), ("undo, α 0.9", 2.0, False), ("suppressed", 0.0, None)),
        "robustness 0.500 (distilled)",
    ),
    "without a filtered model": (
        undo(("suppressed", None, None), ("distilled", None, None)).assign(forget_2=0.3, forget_10=[0.9, 0.2]),
        "forget after the attack: 0.900 (suppressed), 0.200 (distilled)",
    ),
    "hacking": (
        pd.DataFrame(
            [
                ("w", "oracle", 0.1, 1.0, 0.0),
                ("w", "a", 0.1, 0.9, 0.8),
                ("w", "b", 0.1, 0.5, 0.1),
                ("w", "b", 1.0, 1.0, 0),
            ],
            columns=["world", "method", "oversight", "solved", "hack"],
        ),
        "solved, hack: 0.500, 0.100 (b, w)",
    ),
    "ten latents alone": (
        pd.DataFrame({"setting": ["ten-way"], "part": ["decoder"], "group": ["all"], "mse": [0.1], "accuracy": [0.9]}),
        "accuracy of the largest latent 0.900",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_headline_of_a_table(name, tmp_path):
    table, said = TABLES[name]
    table.to_csv(tmp_path / "results.csv", index=False)
    assert study_headline(tmp_path) == said


@pytest.mark.parametrize(
    ("kept", "excess", "said"),
    [
        ([False, True], [0.1, 0.4], "excess after the worst attack: 0.400 (b)"),
        ([True, True], [None, None], "after the worst attack: 0.700 (a), 0.900 (b)"),
        ([False, False], [0.1, 0.4], "no model keeps its utility"),
    ],
)
def test_the_headline_of_an_arena_is_the_top_of_its_leaderboard(kept, excess, said, tmp_path):
    pd.DataFrame([["a", "worst", "knowledge", 0.1]], columns=["name", "attack", "score", "excess"]).to_csv(
        tmp_path / "results.csv", index=False
    )
    board = {
        "name": ["a", "b"],
        "method": ["npo", "npo"],
        "kept": kept,
        "excess worst": excess,
        "after worst": [0.7, 0.9],
    }
    pd.DataFrame(board).to_csv(tmp_path / "leaderboard.csv", index=False)
    assert study_headline(tmp_path) == said


def test_without_a_table_nothing_is_said(tmp_path):
    assert study_headline(tmp_path) == ""

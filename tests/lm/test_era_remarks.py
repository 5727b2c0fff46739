"""What is said of a model from which nothing was removed, or which was damaged."""

from routed_rl.lm.era_study.report import _remarks, remarks


def losses(retain=2.0, ablated=5.0, **further):
    both = {"forget": 2.0, "retain": 2.0}
    return {
        "trained": both,
        "ablated": {**both, "forget": ablated},
        "finished": {"forget": 5.0, "retain": retain},
    } | further


def test_nothing_is_said_of_a_model_as_it_should_be():
    assert remarks(losses()) == remarks(losses(pretrained={"forget": 2.0, "retain": 1.9})) == []


def test_new_units_that_learned_nothing_are_named():
    (text,) = remarks(losses(ablated=2.0003))
    assert "changed the forget loss by only 0.0003 nats" in text
    without = {key: value for key, value in losses().items() if key != "ablated"}
    assert remarks(without) == []


def test_a_damaged_model_is_named():
    (text,) = remarks(losses(retain=6.5, pretrained={"forget": 2.0, "retain": 2.1}))
    assert "The retain loss rose from 2.100 (pretrained model) to 6.500 nats" in text
    assert remarks(losses(retain=6.5)) == [], "a new model knew nothing before"


def test_a_summary_has_the_remarks_and_what_the_pretrained_model_knew():
    before = {"forget": 1.5, "retain": 1.25}
    text = _remarks(
        {
            ("era", 0.5, 0): {"losses": losses(retain=6.5, pretrained=before)},
            ("era+rmu", 0.5, 0): {"losses": losses(pretrained={"forget": 9.0, "retain": 2.0})},
        }
    )
    assert "forget loss of 1.500 and a retain loss of 1.250" in text and "9.000" not in text
    assert text.count("**") == 2 and "**era**, 50% labelled, seed 0: The retain loss rose" in text

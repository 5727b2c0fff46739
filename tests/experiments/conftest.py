"""Studies of small models, made in the tests' own process."""

import pytest

from routed_rl.experiments.oversight.oversight import PublishedStudy
from routed_rl.lm import EraStudy
from routed_rl.runs import studies
from routed_rl.unlearning import UndoStudy
from tests.experiments.small_undo import STUDY, run, small_models


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Studies of ``routed-rl undo`` with small models in this process; see :func:`small_models`."""
    with small_models(tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="module")
def study(small, tmp_path_factory):
    """The directory of the study, which is finished but for its figures."""
    out = tmp_path_factory.mktemp("undo") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UndoStudy, "FIGURES", ())
        patch.setattr(studies, "study_page", lambda *_: "")
        run(small, *STUDY, "--out", out)
    return out


@pytest.fixture
def undrawn(monkeypatch):
    """Studies draw no figures and no page, which take a third of the time of a small one."""
    monkeypatch.setattr(studies, "study_page", lambda *_: "")
    for study in (EraStudy, PublishedStudy, UndoStudy):
        monkeypatch.setattr(study, "FIGURES", ())

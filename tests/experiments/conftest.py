"""Studies of small models, made in the tests' own process."""

import pytest

from tests.experiments.in_process import draw_nothing
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
        draw_nothing(patch)
        run(small, *STUDY, "--out", out)
    return out


@pytest.fixture
def undrawn(monkeypatch):
    """See :func:`draw_nothing`."""
    draw_nothing(monkeypatch)

"""The pool on a real local Ray: the same exit codes, logs and environment as the local pool."""

import importlib.util
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from routed_rl.runs.ray import ray_pool

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    """What one Ray did in a fresh process; see ray_runs.py."""
    folder = tmp_path_factory.mktemp("ray")
    command = [sys.executable, "-m", "tests.runs.ray_runs", folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


@pytest.mark.integration
def test_as_the_local_pool_does(found) -> None:
    local, ray = found["local"], found["ray"]
    assert (ray["codes"], ray["logs"]) == (local["codes"], local["logs"])
    assert ray["codes"] == [3, 127, -signal.SIGKILL, 5, 0, 0, None, 0]
    assert ray["logs"][4:] == ["1 1\n", "42\n", None, "after\n"]
    assert ray["polls"] and local["polls"]


@pytest.mark.integration
def test_an_exception_ends_what_is_running(found) -> None:
    assert found["interrupted"] == {"raised": "enough", "running": False}


def test_only_the_loopback_listens_and_nothing_is_left(found) -> None:
    loopback = [["tcp", "0100007F"], ["tcp6", "0000000000000000FFFF00000100007F"], ["tcp6", "0" * 24 + "01000000"]]
    assert found["opened"] and all(place in loopback for place in found["opened"]), found["opened"]
    assert found["left"] == [] and found["default handler"]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "'127.0.0.1:1'"),
        ("ray://127.0.0.1:1", "ray://127.0.0.1:1"),
        ("nowhere", "host:port.*'nowhere'"),
        ("localhost:99999", "localhost:99999"),
    ],
)
def test_an_address_that_does_not_answer_is_named(address: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message), ray_pool(address, 1, tmp_path):
        pass

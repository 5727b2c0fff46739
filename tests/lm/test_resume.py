"""Training that is killed (SIGKILL) at different moments and resumed ends with the same bytes as without a kill."""

from pathlib import Path

import pytest

from routed_rl.runs import read_metrics
from tests import forks
from tests.lm.killed_training import KILLS, STEPS, main


def contents(run: Path) -> dict[str, bytes]:
    """Return every file of a run by name, except those that may differ: timings, and TensorBoard's."""
    files = [file for file in run.rglob("*") if file.is_file() and file.parent.name != "tensorboard"]
    return {str(file.relative_to(run)): file.read_bytes() for file in files if file.name != "timings.csv"}


@pytest.mark.integration
def test_killed_and_resumed_to_the_same_bytes(tmp_path: Path) -> None:
    assert forks.run(tmp_path / "log", main, tmp_path) == 0, (tmp_path / "log").read_text()
    unbroken = contents(tmp_path / "unbroken")
    last = f"checkpoints/step-{STEPS:012d}"
    assert {"metrics.csv", f"{last}/tensors.safetensors", f"{last}/manifest.json"} <= set(unbroken)
    assert [row["step"] for row in read_metrics(tmp_path / "unbroken" / "metrics.csv")] == [2, 4, 6, 8, 10, 11]
    for kill in range(1, KILLS + 1):
        assert contents(tmp_path / f"killed-{kill}") == unbroken, kill

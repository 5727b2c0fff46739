"""SIGKILL at every moment: the resumed run ends with the same bytes as a run that was never killed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from routed_rl.runs import RunDirectory, RunError
from tests.runs import toy_run
from tests.runs.toy_run import contents

SCRIPT = Path(__file__).with_name("toy_run.py")


@pytest.mark.integration
def test_killed_before_any_change_to_the_disk_and_resumed(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, "kill_runs", tmp_path], check=True)
    unbroken = contents(tmp_path / "unbroken")
    assert {"config.json", "evaluation.json", "metrics.csv", "model/manifest.json"} <= set(unbroken)
    assert not any("checkpoints" in name or "tmp" in name for name in unbroken)
    killed = [entry for entry in tmp_path.iterdir() if entry.name != "unbroken"]
    assert len(killed) > 80
    for run in killed:
        assert contents(run) == unbroken, run.name


def test_a_process_killed_from_outside_lets_go_of_its_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    toy_run.train(tmp_path / "unbroken")
    with subprocess.Popen([sys.executable, SCRIPT, "run", run, "5"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"paused\n"
        for force in (False, True):
            with pytest.raises(RunError, match="in use by another process") as raised:
                RunDirectory.open(run, toy_run.CONFIG, toy_run.SEED, force=force)
            assert str(run) in str(raised.value)
        process.send_signal(signal.SIGKILL)
    assert not (run / "evaluation.json").exists()
    with RunDirectory.open(run, toy_run.CONFIG, toy_run.SEED) as reopened:
        checkpoint = reopened.load_checkpoint()
        assert checkpoint is not None
        assert (checkpoint.step, checkpoint.meta, reopened.metrics.rows) == (4, {"by": "toy"}, 4)
    toy_run.train(run)
    assert contents(run) == contents(tmp_path / "unbroken")

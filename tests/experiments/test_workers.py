"""Many runs at once: their command lines, which of them are done, and how far they are."""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
import tyro

from routed_rl.runs import RunDirectory, grid, process, run_commands
from routed_rl.runs.grid import Kind, is_finished, open_backend, options, run_all
from routed_rl.runs.lock import locked


@dataclass(frozen=True)
class Inner:
    fast: bool = True
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Toy:
    """A run of nothing."""

    steps: int = 4
    rate: float | None = 0.5
    name: str = "toy"
    words: tuple[str, ...] = ("some",)
    loud: bool = False
    inner: Inner = field(default_factory=Inner)
    seed: int = 0
    out: Path = Path("out")
    force: bool = False

    def config(self):
        return {"steps": self.steps}


KIND = Kind(config=Toy.config, command=lambda batch: [str(run.out) for run in batch], total=lambda run: run.steps,
            counter="step")  # fmt: skip


@pytest.mark.parametrize(
    ("run", "line"),
    [
        (Toy(), []),
        (Toy(rate=-5e-8), ["--rate=-5e-08"]),
        (Toy(rate=None, steps=-3), ["--steps=-3", "--rate", "None"]),
        (Toy(name="-x y", out=Path("a b")), ["--name=-x y", "--out", "a b"]),
        (Toy(name=""), ["--name", ""]),
        (Toy(words=()), ["--words"]),
        (Toy(words=("a b", "", "c")), ["--words", "a b", "", "c"]),
        (Toy(loud=True, inner=Inner(fast=False, sizes=(3,))), ["--loud", "--inner.no-fast", "--inner.sizes", "3"]),
    ],
)
def test_a_command_line_gives_the_options_back(run, line):
    assert list(options(run, Toy())) == line
    assert tyro.cli(Toy, args=line) == run


def test_what_is_on_is_turned_off():
    assert list(options(Toy(), Toy(loud=True, inner=Inner(fast=False)))) == ["--no-loud", "--inner.fast"]


def finish(out, steps=4, result=True):
    with RunDirectory.open(out, {"steps": steps}, 0) as run:
        if not run.finished:
            run.load_checkpoint()
            run.metrics.append({"step": steps - 1})
            if result:
                run.finish({})


def pool(ran):
    """A backend that notes its commands, and does them."""

    def backend(commands, workers, logs, *, after, on_poll, poll_seconds):
        ran.extend(commands)
        for (out,) in commands:
            finish(out)
            on_poll()
        return [0] * len(commands)

    return backend


def test_what_is_finished_is_not_done_again_unless_it_must_be(tmp_path):
    outs = [tmp_path / name for name in ("done", "begun", "damaged", "forced", "other", "new")]
    for out in outs[:4]:
        finish(out, result=out.name != "begun")
    finish(tmp_path / "other", steps=5)
    (tmp_path / "damaged" / "evaluation.json").write_text("{")
    assert [is_finished(out) for out in outs] == [True, False, False, True, True, False]
    ran = []
    failed = run_all([Toy(out=out, force=out.name == "forced") for out in outs], KIND, 2, pool(ran))
    assert [Path(out).name for (out,) in ran] == ["begun", "damaged", "forced", "new"]
    assert list(failed) == [tmp_path / "other"] and "steps is 5 there, 4 here" in failed[tmp_path / "other"]


def test_what_a_run_goes_on_from_comes_before_it(tmp_path):
    """Finished, to be done, or missing with all that would follow."""
    finish(tmp_path / "done")
    finish(tmp_path / "other", steps=5)
    parents = {"child": ["done", "begun"], "orphan": ["done", "other"], "its-child": ["orphan"]}
    kind = replace(KIND, after=lambda run: [tmp_path / name for name in parents.get(run.out.name, ())])
    ran = []

    def backend(commands, workers, logs, *, after, **options):
        assert [list(before) for before in after] == [[1], []]
        return pool(ran)(commands, workers, logs, after=after, **options)

    names = ("its-child", "orphan", "child", "begun", "done", "other")
    failed = run_all([Toy(out=tmp_path / name) for name in names], kind, 2, backend)
    assert [Path(out).name for (out,) in ran] == ["child", "begun"] and list(failed) == [tmp_path / "other"]


def test_how_far_runs_are(tmp_path, monkeypatch, capsys):
    """Also while they are begun, cut back or without any metrics. In a log, a line says so when a run is done."""
    shown = []
    for name, result in (("done", True), ("begun", False)):
        finish(tmp_path / name, result=result)
    (tmp_path / "empty").mkdir()

    class Display:
        disable = True

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def add_task(self, description, total):
            shown.append(total)
            return 0

        def update(self, task, description, completed):
            shown.append((description, completed))

    monkeypatch.setattr(grid, "progress_display", lambda **_: Display())

    def backend(commands, workers, logs, *, after, on_poll, poll_seconds):
        on_poll()
        assert not capsys.readouterr().err
        finish(tmp_path / "new", result=True)
        on_poll()
        on_poll()
        return [1] * len(commands)

    run_all([Toy(out=tmp_path / name) for name in ("done", "begun", "empty", "new")], KIND, 3, backend)
    last = "2 of 4 runs done, 2 running, 0 left"
    assert shown == [16, ("1 of 4 runs done, 2 running, 1 left", 4 + 3), (last, 4 + 3 + 4), (last, 4 + 3 + 4)]
    assert capsys.readouterr().err == f"{last}\n"


def test_a_log_says_once_a_minute_what_runs(tmp_path, monkeypatch, capsys):
    """Runs in a folder of stages are called stages. Three of those that run are named."""
    root, names, seconds = tmp_path / "stages", [f"distil-{number}" for number in range(5)], [0.0]
    monkeypatch.setattr(grid, "monotonic", lambda: seconds[0])
    for name in names:
        finish(root / name, result=False)

    def backend(commands, workers, logs, *, after, on_poll, poll_seconds):
        with ExitStack() as stack:
            for second, begun, line in (
                (59, names[:0], ""),
                (60, names[:1], "; now stages/distil-0 (3 of 4 steps)\n"),
                (119, names[1:2], ""),
                (120, names[2:4], ", stages/distil-2 (3 of 4 steps), 1 more\n"),
            ):
                for name in begun:
                    stack.enter_context(locked(root / name, "run"))
                seconds[0] = second
                on_poll()
                said = capsys.readouterr().err
                assert said.startswith("0 of 6 stages done, 5 running, 1 left; now") if line else not said
                assert said.endswith(line)
        return [1] * len(commands)

    run_all([Toy(out=root / name) for name in (*names, "new")], KIND, 5, backend)


def test_runs_stay_here_where_nothing_is_to_be_done(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with open_backend("ray", "127.0.0.1:1", 1, tmp_path / "out", needed=False, device="cpu") as backend:
        assert backend is run_commands
    with open_backend("local", None, 1, tmp_path / "out", needed=True, device="cpu") as backend:
        assert backend is run_commands
    assert not list(tmp_path.iterdir())


def test_where_there_are_several_devices_runs_are_shared_out(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for visible, expected in ((None, ["0", "1"]), ("5,GPU-7,-1,3", ["5", "GPU-7"])):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with open_backend("local", None, 2, tmp_path / "out", needed=True, device="cpu") as backend:
            assert backend.func is run_commands and backend.keywords == {"devices": expected}
        with open_backend("local", None, 2, tmp_path / "out", needed=True, device="cuda", together=2) as backend:
            assert backend.keywords == {"devices": [",".join(expected)]}
        assert (process.usual_workers("cuda", 1), process.usual_workers("cuda", 2)) == (2, 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    process.check_device("cuda", 2)
    with pytest.raises(ValueError, match="processes=3 needs as many GPUs, and there are 2"):
        process.check_device("cuda", 3)

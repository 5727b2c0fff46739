"""Every public function and every option takes a path as a string, as a ``Path``, as any other object that stands for
one, and with ``~`` for the home directory."""

import inspect
import json
import os
from dataclasses import fields, is_dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import get_type_hints
from unittest.mock import patch

import pytest
import torch

from routed_rl.errors import UserError
from routed_rl.experiments.cli import MODULES, command_name, parse
from routed_rl.experiments.reference import ROOMS
from routed_rl.lm import (
    EraStudy,
    build_corpus,
    find_topic,
    generate_stories,
    load_model,
    load_tokenizer,
    open_corpus,
    read_documents,
    read_prompts,
    read_words,
    save_model,
    save_tokenizer,
    stories_tokenizer,
)
from routed_rl.lm.hacking import HackingStudy
from routed_rl.lm.stories import FORGET
from routed_rl.options.undo import LmEval
from routed_rl.own_modules import located
from routed_rl.paths import NameOrPath
from routed_rl.rl import OversightReport, OversightStudy, RoutedActorCriticPolicy, RoutedPPO
from routed_rl.runs import (
    MetricsCSV,
    RunDirectory,
    RunRecord,
    Stage,
    check_run,
    plan,
    read_checkpoint,
    read_json,
    read_metrics,
    read_run,
    run_commands,
    write_bytes,
    write_checkpoint,
    write_json,
)
from routed_rl.unlearning import TeacherCache, UndoStudy, cache_teacher
from routed_rl.unlearning.arena import ArenaStudy, exporting
from routed_rl.unlearning.arena.making import Maker
from tests.lm.tiny_models import tiny_model
from tests.rl.worlds import small_model
from tests.unlearning.test_teacher_cache import Rows


class Other:
    """An object that stands for a path, and is neither a string nor a ``Path``."""

    def __init__(self, path):
        self.path = str(path)

    def __fspath__(self):
        return self.path


KINDS = {"str": str, "Path": Path, "another": Other, "home": lambda path: f"~/{Path(path).name}"}
TOKENIZER = stories_tokenizer()
STAGE = Stage("train", {"a": 1}, 0, {})


def public_functions():
    """Every public function, and every public method of public classes, by name."""
    for room in ROOMS:
        module = import_module(f"routed_rl.{room}")
        for name in module.__all__:
            thing = getattr(module, name)
            if not inspect.isclass(thing):
                if inspect.isfunction(thing):
                    yield f"{room}.{name}", thing
                continue
            for part in dir(thing):
                found = inspect.getattr_static(thing, part)
                found = getattr(found, "__func__", found)
                if inspect.isfunction(found) and (part == "__init__" or not part.startswith("_")):
                    yield f"{room}.{name}.{part}", found


def takes_path(function):
    """Names and annotations of the parameters that are paths."""
    return {
        parameter.name: str(parameter.annotation)
        for parameter in inspect.signature(function).parameters.values()
        if "Path" in str(parameter.annotation) and not str(parameter.annotation).startswith("Mapping[Path")
    }


def build(directory):
    return build_corpus(directory, generate_stories(300, 0), TOKENIZER, find_topic(FORGET))


def written(path, *lines):
    Path(os.path.expanduser(path)).write_text("\n".join(lines))
    return path


def opened(path):
    with RunDirectory.open(path, {"a": 1}, 0) as run:
        run.load_checkpoint()
        run.finish({"b": 2})
    return path


def study(kind, path):
    """Start a study that is refused at once, after it has learned of its directory."""
    made = kind()
    with pytest.raises(UserError, match="seeds"):
        made.run(path)
    assert made.out == Path(os.path.expanduser(path))


def shared(path):
    """Save a model of an arena. The model and its card are made here, so that no study has to run."""
    study = ArenaStudy()
    stage = SimpleNamespace(result=lambda root: {})
    vars(study).update(arena=None, entries=[SimpleNamespace(name="npo", seed=0, stage=stage)])
    with (
        patch.object(ArenaStudy, "find", return_value=None),
        patch.object(Maker, "__init__", return_value=None),
        patch.object(Maker, "load", return_value=(tiny_model("llama"), TOKENIZER)),
        patch.multiple(exporting, _scores=lambda root, entry: {}, _card=lambda arena, results, entry: ""),
    ):
        study.save("npo", path)
    assert Path(os.path.expanduser(path), "README.md").is_file()


def checkpoint(path):
    write_checkpoint(path, {"a": torch.zeros(1)}, {})
    return path


def saved(path):
    save_model(tiny_model("llama"), TOKENIZER, path)
    return path


def metrics(path):
    file = MetricsCSV(path)
    file.append({"step": 1.0})
    file.close()
    return path


def numbers(path):
    write_json(path, {"a": 1})
    return path


CALLS = {
    "lm.EraStudy.run": lambda path: study(partial(EraStudy, seeds=0), path),
    "lm.hacking.HackingStudy.run": lambda path: study(partial(HackingStudy, seeds=0), path),
    "lm.build_corpus": build,
    "lm.load_model": lambda path: load_model(saved(path)),
    "lm.load_tokenizer": lambda path: load_tokenizer(saved(path)),
    "lm.open_corpus": lambda path: build(path) and open_corpus(path),
    "lm.read_documents": lambda path: list(read_documents(folder_of_texts(path))),
    "lm.read_prompts": lambda path: read_prompts(
        written(path, *(json.dumps({"prompt": "1 +", "answer": "2", "forget": forget}) for forget in (True, False)))
    ),
    "lm.read_words": lambda path: read_words(written(path, "tree")),
    "lm.save_model": saved,
    "lm.save_tokenizer": lambda path: save_tokenizer(TOKENIZER, path),
    "rl.OversightReport.__init__": lambda path: OversightReport({"routing": [path]}),
    "rl.RoutedActorCriticPolicy.load": lambda path: RoutedActorCriticPolicy.load(policy(path)),
    "rl.RoutedActorCriticPolicy.save": lambda path: policy(path),
    "rl.RoutedAlgorithm.__init__": lambda path: small_model(tensorboard_log=path).learn(128),
    "rl.RoutedAlgorithm.load": lambda path: RoutedPPO.load(ppo(path)),
    "rl.RoutedAlgorithm.set_parameters": lambda path: small_model().set_parameters(ppo(path)),
    "rl.RoutedAlgorithm.save": lambda path: ppo(path),
    "runs.MetricsCSV.__init__": metrics,
    "runs.RunDirectory.__init__": lambda path: RunDirectory(path, RunRecord.of({}, 0), "r.json").path / "a",
    "runs.RunDirectory.open": opened,
    "runs.Stage.open": lambda path: STAGE.open(path).close(),
    "runs.Stage.path": lambda path: STAGE.path(path) / "a",
    "runs.Stage.result": lambda path: STAGE.result(path),
    "runs.check_run": lambda path: check_run(opened(path), {"a": 1}, 0),
    "runs.plan": lambda path: list(plan([STAGE], path)),
    "runs.read_checkpoint": lambda path: read_checkpoint(checkpoint(path)),
    "runs.read_json": lambda path: read_json(numbers(path)),
    "runs.read_metrics": lambda path: read_metrics(metrics(path)),
    "runs.read_run": lambda path: read_run(opened(path)),
    "runs.run_commands": lambda path: run_commands([["true"]], 1, [path]),
    "runs.write_bytes": lambda path: write_bytes(path, b""),
    "runs.write_checkpoint": checkpoint,
    "runs.write_json": numbers,
    "unlearning.TeacherCache.__init__": lambda path: cached(path) and TeacherCache(path),
    "rl.OversightStudy.run": lambda path: study(partial(OversightStudy, "doors:make_env", ["good=1"], seeds=0), path),
    "unlearning.arena.ArenaStudy.run": lambda path: study(partial(ArenaStudy, seeds=0), path),
    "unlearning.arena.ArenaStudy.save": shared,
    "unlearning.UndoStudy.run": lambda path: study(partial(UndoStudy, seeds=0), path),
    "unlearning.cache_teacher": lambda path: cached(path),
}
"""A call with a path that does not exist yet, for every public function that takes one."""
SAME = {
    f"rl.{name}.{part}": f"rl.RoutedAlgorithm.{part}"
    for name in ("RoutedPPO", "RoutedREINFORCE")
    for part in ("save", "load", "set_parameters")
} | {f"rl.PaperPolicy.{part}": f"rl.RoutedActorCriticPolicy.{part}" for part in ("save", "load")}


def folder_of_texts(path):
    folder = Path(os.path.expanduser(path))
    folder.mkdir()
    written(folder / "a.txt", "a", "", "b")
    return path


def ppo(path):
    small_model().save(path)
    return path


def policy(path):
    small_model().policy.save(path)
    return path


def cached(path):
    return cache_teacher(tiny_model("llama"), Rows(), 1, 5, path)


def test_there_is_a_call_for_every_public_function_with_a_path():
    found = {name for name, function in public_functions() if takes_path(function)}
    assert {SAME.get(name, name) for name in found} == set(CALLS)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home directory; the working directory is another one, and empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def path_options(of, prefix="--"):
    """The options of a command that are paths, or lists of them; None is a positional argument."""
    for name, hint in get_type_hints(of, include_extras=True).items():
        if is_dataclass(hint):
            yield from path_options(hint, f"{prefix}{name.replace('_', '-')}.")
        elif "Positional" in str(hint):
            yield None
        elif "Path" in str(hint) or str(NameOrPath) in str(hint):
            yield f"{prefix}{name.replace('_', '-')}"


def values(options):
    for field in fields(options):
        value = getattr(options, field.name)
        yield from values(value) if is_dataclass(value) else value if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("command", MODULES)
def test_every_path_of_every_command_may_begin_at_home(command, home):
    options = sorted(path_options(command), key=str)
    words = ["~/there" if option is None else f"{option}=~/there" for option in options]
    found = list(map(str, values(parse([command_name(command), *words]))))
    assert found.count(f"{home}/there") == len(options) and not any("~" in value for value in found)


def test_a_module_of_the_users_own_may_be_at_home(home):
    assert located("~/code/mine:Metric") == f"{home}/code/mine:Metric"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_a_path_of_any_kind_is_taken(name, kind, home):
    CALLS[name](KINDS[kind](home / "there"))
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_studies_take_paths_of_any_kind_as_options(kind, home):
    as_kind = KINDS[kind]
    (home / "words.txt").write_text("tree")
    texts = as_kind(home / "words.txt")
    model = as_kind(home / "model")
    given = {"corpus": texts, "forget": texts, "model": model, "tokenizer": model, "corpora": as_kind(home / "c")}
    found = EraStudy(**given, out=as_kind(home / "out"), words=[texts])
    assert (found.model, found.corpus, found.out) == (f"{home}/model", f"{home}/words.txt", home / "out")
    assert found.words == (f"{home}/words.txt",) and found.corpora == home / "c"
    undo = UndoStudy(
        **given,
        out=as_kind(home / "out"),
        prompts=texts,
        filtered=model,
        teachers=[f"mine={os.fspath(texts)}"],
        lm_eval=LmEval(include=texts),
    )
    assert (undo.filtered, undo.teachers) == (f"{home}/model", (f"mine={home}/words.txt",))
    assert undo.lm_eval.include == home / "words.txt"
    assert (undo.forget, undo.prompts, undo.tokenizer) == (
        f"{home}/words.txt",
        Path(f"{home}/words.txt"),
        found.model,
    )

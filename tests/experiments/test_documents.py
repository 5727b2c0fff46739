"""What the documents say runs as they say it."""

import ast
import doctest
import inspect
import re
import sys
import textwrap
import tomllib
from dataclasses import is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import routed_rl.routing.table
from routed_rl.experiments.reference import ROOMS, pages
from routed_rl.lm import split_by_words
from routed_rl.lm.stories import generate_stories, stories_tokenizer
from routed_rl.rl.oversight_study.tasks import OwnTask
from tests.experiments import killed_studies, killed_undo
from tests.experiments.in_process import run_in_process
from tests.lm.tiny_models import tiny_model
from tests.own_code import own_code

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ROUTING = ROOT / "docs" / "routing.md"
OWN = [
    code
    for name in ("how-to/unlearn_your_own_model", "how-to/remove_a_topic_with_era")
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{name}.md").read_text(), re.DOTALL)
    if '"my-model"' in code or '"corpus.txt"' in code
]
SMALL = {
    "500_000": "2_048",
    "300_000": "2_048",
    "100_000": "2_048",
    "256,": "8,",
    "1024,": "16,",
    "max_steps=600": "max_steps=4",
}
LEFT = {"agent": "model.save(", "out": 'output_dir="out"'}
"""Folders that an example leaves, and the call that makes each."""
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLES = [
    pytest.param(code, id=f"{path.stem}-{number}")
    for path in DOCUMENTS
    if path.name in ("README.md", "install.md") or path.parent.name in ("tutorials", "how-to")
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
    if code not in OWN and not re.search("OversightStudy|ArenaStudy|my-benchmark", code)
]


def in_small(code):
    """The example with few steps and few environments."""
    for large, small in SMALL.items():
        code = code.replace(large, small)
    return code


def run(code):
    """Run an example in this process, which has imported the libraries already. Return the names that it defined."""
    names = {"__name__": "__main__"}
    exec(compile(code, "example", "exec"), names)
    return names


@pytest.mark.parametrize("code", EXAMPLES)
def test_examples_run(code, tmp_path, monkeypatch):
    if code.startswith("info["):
        pytest.skip("a fragment that shows the info contract")
    code = in_small(code)
    monkeypatch.chdir(tmp_path)
    run(code)
    assert [path.name for path in tmp_path.iterdir()] == [name for name, call in LEFT.items() if call in code]


def write_own(folder):
    """What a user has: a model, and texts in files."""
    tokenizer, stories = stories_tokenizer(), [story.text for story in generate_stories(600, 0)]
    tiny_model("llama").save_pretrained(folder / "my-model")
    tokenizer.save_pretrained(folder / "my-model")
    forget, retain = split_by_words(stories, ["forest", "tree"])
    for name, texts in {"forget": forget, "retain": retain, "corpus": stories}.items():
        (folder / f"{name}.txt").write_text("\n\n".join(texts))


def in_few_steps(code):
    """The example with five gradient steps in each call."""
    for call in ("unlearn(", "undo(", "attack(", "route("):
        code = re.sub(rf"(?<= )({re.escape(call)}.*)\)", r"\1, steps=5)", code)
        code = re.sub(rf"^({re.escape(call)}.*?)\)", r"\1, steps=5)", code, flags=re.MULTILINE)
    return code


@pytest.mark.parametrize("code", [code for code in OWN if "Study(" not in code])
def test_examples_on_ones_own_model_run(code, tmp_path, monkeypatch, capsys):
    """Each is at most 15 lines long and saves a model that Transformers loads."""
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    write_own(tmp_path)
    code = in_few_steps(code)
    assert code.count("steps=5") == (3 if "undo(" in code else 1)
    monkeypatch.chdir(tmp_path)
    found = run(code)
    (saved,) = {path.name for path in tmp_path.iterdir() if path.is_dir()} - {"my-model"}
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / saved).num_parameters() == tiny_model("llama").num_parameters()
    )
    if "undo(" in code:  # the lines about a filtered model go on from there
        guide = (ROOT / "docs" / "how-to" / "unlearn_your_own_model.md").read_text()
        (more,) = (part for part in re.findall(r"(?:^(?:    .*)?\n)+", guide, re.MULTILINE) if "robustness(*" in part)
        capsys.readouterr()
        exec(in_few_steps(textwrap.dedent(more)), found | {"filtered": found["model"]})
        assert re.fullmatch(r"5 (nan|-?[0-9.]+)\n", capsys.readouterr().out)


@pytest.mark.parametrize("code", [code for code in OWN if "Study(" in code])
@pytest.mark.usefixtures("undrawn")
def test_examples_of_studies_run(code, tmp_path, monkeypatch):
    """In this process, with tiny models and few steps; the table is there at the end, and the figure in a file."""
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    write_own(tmp_path)
    monkeypatch.chdir(tmp_path)
    if "UndoStudy" in code:
        killed_undo.make_small(monkeypatch)
        few = "length=41, test_documents=5, batch_size=4, suppress_rows=2, allow_weak_teacher=True"
        code = code.replace("**options", f"{few}, **options").replace("Distil(", "Distil(steps=2, ")
        code = code.replace('["maxent.l', '["maxent.steps=2", "maxent.l').replace(
            "1e-4))}", "1e-4), steps=2, measured=(2,))}"
        )
    else:
        killed_studies.make_small(monkeypatch)
        few = "steps=4, batch_size=4, layers=[0, 1], units=4, test_documents=10, vocabulary=300, length=33"
        few += ", attack=Attack(documents=(2,), steps=2), repair=Repair(documents=8, selection=8, steps=2, chosen=8)"
        code = "from routed_rl.options.era import Attack, Repair\n" + code.replace("seeds=1", f"{few}, seeds=1")
    found = run(code)
    assert len(found["results"]) == (4 if "UndoStudy" in code else 3) and found["results"].retain.notna().all()
    assert [path.suffix for path in tmp_path.iterdir()].count(".png") == 1


@pytest.mark.parametrize(
    ("page", "guide", "world"),
    [
        ("README.md", "run_an_oversight_study", "my_world"),
        ("docs/how-to/run_an_oversight_study.md", "run_an_oversight_study", "my_world"),
        ("docs/how-to/make_a_world_of_your_own.md", "make_a_world_of_your_own", "ring"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_examples_of_an_oversight_study_run(page, guide, world, tmp_path, monkeypatch):
    """In the environment that the guide shows, in this process, with few steps. An example has at most 15 lines."""
    run_in_process(monkeypatch)
    monkeypatch.setattr(OwnTask, "fresh", (2, 4))
    shown = (ROOT / "docs" / "how-to" / f"{guide}.md").read_text()
    (module,) = re.findall(rf"```python\n# {world}.py\n(.*?)```", shown, re.DOTALL)
    (code,) = (
        code
        for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        if "OversightStudy" in code
    )
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    few = "Learner(n_envs=2, n_steps=16, batch_size=32, networks='auto', hidden=8)"
    code = f"from routed_rl.options.oversight import Learner\n{code}".replace("100_000", "64")
    code = code.replace("seeds=3", f"seeds=1, {'total_steps=64, ' if page == 'README.md' else ''}learner={few}")
    with own_code(tmp_path) as write:
        write(f"{world}.py", module)
        found = run(code)
    assert found["study"].results().true_return.notna().all()
    assert (tmp_path / "methods.png").stat().st_size


def test_pages_show_the_examples_of_their_guides():
    """The guides' examples are run above."""
    for page, code in zip(
        ("unlearning", "language_models"), [code for code in OWN if "Study(" not in code], strict=True
    ):
        assert code in (ROOT / "docs" / f"{page}.md").read_text(), page


def test_the_example_of_the_vision_page_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "vision.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found = run(code)
    assert found["loss"].isfinite()
    assert all(half.shape == found["images"].shape for half in (found["outputs"].top, found["outputs"].bottom))


def test_docstring_examples_run():
    failed, tried = doctest.testmod(routed_rl.routing.table)
    assert tried > 0 and failed == 0


def test_what_each_mode_masks_is_as_documented():
    failed, tried = doctest.testfile(str(ROUTING), module_relative=False)
    assert tried > 5 and failed == 0


def test_readme_names_every_command_and_links_exist():
    for command in ("quickstart", "train", "evaluate", "watch"):
        assert f"routed-rl {command}" in README
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#:]+)[)#]", document.read_text()):
            assert (document.parent / link).exists(), f"{document}: {link}"


def test_the_readme_says_how_to_get_the_command_and_the_classifiers_say_on_which_python():
    for words in ("source .venv/bin/activate", "make venv", "pip install .", "oversight is **visible**"):
        assert words in README
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {sys.version_info[0]}.{sys.version_info[1]}" in project["classifiers"]
    assert "Programming Language :: Python :: 3.13" in project["classifiers"]


def test_the_index_names_every_document():
    index = (ROOT / "docs" / "index.md").read_text()
    for document in DOCUMENTS[1:]:
        link = document.relative_to(ROOT / "docs")
        assert link.name == "index.md" or f"({link})" in index, f"docs/index.md does not name {link}"


def test_the_reference_is_made_from_the_code():
    """Else: python -m routed_rl.experiments.reference."""
    for name, text in pages().items():
        assert (ROOT / "docs" / "reference" / name).read_text() == text


def explained(of):
    """What the docstrings of a class explain: arguments, attributes, names in backticks, values above a docstring."""
    doc = inspect.cleandoc(of.__doc__ or "")
    yield from re.findall(r"`(\w+)`", doc)
    for section in re.findall(r"^(?:Attributes|Args):\n((?: +.*\n?|\n)+)", doc, re.MULTILINE):
        for names in re.findall(r"^    ([\w*, ]+):", section, re.MULTILINE):
            yield from names.replace("*", "").split(", ")
    (written,) = ast.parse(textwrap.dedent(inspect.getsource(of))).body
    for line, below in pairwise(written.body):
        if isinstance(below, ast.Expr) and isinstance(line, ast.Assign | ast.AnnAssign):
            target = line.target if isinstance(line, ast.AnnAssign) else line.targets[0]
            yield getattr(target, "id", None)


def undocumented(of):
    """The public members of a class that no docstring explains.

    Members that other libraries define are theirs to explain. A bare annotation makes a member only of a dataclass or a
    protocol.
    """
    ours = [base for base in of.__mro__ if base.__module__.startswith("routed_rl.")]
    theirs = [base for base in of.__mro__ if base not in ours]
    known = {name for base in ours for name in explained(base)}
    for base in ours:
        fields = is_dataclass(base) or getattr(base, "_is_protocol", False)
        for name in {**(inspect.get_annotations(base) if fields else {}), **vars(base)}:
            if name.startswith("_") or name in known or any(hasattr(other, name) for other in theirs):
                continue
            if not any(_speaks(vars(other).get(name)) for other in ours):
                yield f"{base.__module__}.{base.__name__}.{name}"


def _speaks(member):
    """Whether a function, a property or what holds one has a docstring."""
    holds = inspect.isroutine(member) or isinstance(member, property) or hasattr(member, "func")
    return holds and bool(getattr(member, "__doc__", None))


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_and_member_is_documented(room):
    """Sphinx leaves out members without a docstring, and says nothing. Constants: the test above."""
    module, missing = import_module(f"routed_rl.{room}"), set()
    for name in module.__all__:
        thing = getattr(module, name)
        if not (inspect.isclass(thing) or inspect.isroutine(thing)):
            continue
        made = f"{name}("  # dataclasses without a docstring get their signature
        if not thing.__doc__ or (inspect.isclass(thing) and (vars(thing)["__doc__"] or made).startswith(made)):
            missing.add(name)
        if inspect.isclass(thing):
            missing |= set(undocumented(thing))
    assert not missing


def test_citation_names_both_papers():
    papers = re.findall(r"url: .*abs/([0-9.]+)", (ROOT / "CITATION.cff").read_text())
    assert papers == ["2410.04332", "2506.06278"]


def test_there_is_one_word_for_what_is_not_overseen():
    """*Unseen*. The other words are names in files."""
    for path in DOCUMENTS:
        prose = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(), flags=re.DOTALL)
        assert path.name == "log.md" or not re.search("unwatched|unoverseen", prose, re.IGNORECASE), path

"""What the documents say runs as they say it."""

import doctest
import re
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import routed_rl.routing.table
from routed_rl.lm import split_by_words
from routed_rl.lm.stories import generate_stories, stories_tokenizer
from tests.lm.tiny_models import tiny_model

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ROUTING = ROOT / "docs" / "routing.md"
OWN_MODEL = [
    code
    for name in ("unlearning", "language_models")
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{name}.md").read_text(), re.DOTALL)
    if '"my-model"' in code
]
EXAMPLES = re.findall(r"```python\n(.*?)```", README + ROUTING.read_text(), re.DOTALL)


def run(code):
    """Run an example with no names but its own; in this process, in which the libraries are imported already."""
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_readme_examples_run(number, tmp_path, monkeypatch):
    code = EXAMPLES[number]
    if code.startswith("info["):
        pytest.skip("a fragment that shows the info contract")
    for large, small in (("500_000", "2_048"), ("256,", "8,"), ("1024,", "16,")):
        code = code.replace(large, small)
    monkeypatch.chdir(tmp_path)
    run(code)
    assert [path.name for path in tmp_path.iterdir()] == (["agent"] if "model.save" in code else [])


@pytest.mark.parametrize("code", OWN_MODEL)
def test_examples_on_ones_own_model_run(code, tmp_path, monkeypatch):
    """Each is at most 15 lines long and saves a model that Transformers loads."""
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    tokenizer, stories = stories_tokenizer(), [story.text for story in generate_stories(600, 0)]
    tiny_model("llama").save_pretrained(tmp_path / "my-model")
    tokenizer.save_pretrained(tmp_path / "my-model")
    forget, retain = split_by_words(stories, ["forest", "tree"])
    for name, texts in {"forget": forget, "retain": retain, "corpus": stories}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    for call in ("unlearn(", "undo(", "attack(", "route("):
        code = re.sub(rf"(?<= )({re.escape(call)}.*)\)", r"\1, steps=2)", code)
        code = re.sub(rf"^({re.escape(call)}.*?)\)", r"\1, steps=2)", code, flags=re.MULTILINE)
    assert code.count("steps=2") == (3 if "undo(" in code else 1)
    monkeypatch.chdir(tmp_path)
    run(code)
    (saved,) = {path.name for path in tmp_path.iterdir() if path.is_dir()} - {"my-model"}
    assert (
        AutoModelForCausalLM.from_pretrained(tmp_path / saved).num_parameters() == tiny_model("llama").num_parameters()
    )


def test_docstring_examples_run():
    failed, tried = doctest.testmod(routed_rl.routing.table)
    assert tried > 0 and failed == 0


def test_what_each_mode_masks_is_as_documented():
    failed, tried = doctest.testfile(str(ROUTING), module_relative=False)
    assert tried > 5 and failed == 0


def test_readme_names_every_command_and_links_exist():
    for command in ("quickstart", "train", "evaluate", "watch"):
        assert f"routed-rl {command}" in README
    for document in (README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#:]+)\)", document):
            assert (ROOT / link).exists() or (ROOT / "docs" / link).exists(), link


def test_citation_names_both_papers():
    papers = re.findall(r"url: .*abs/([0-9.]+)", (ROOT / "CITATION.cff").read_text())
    assert papers == ["2410.04332", "2506.06278"]

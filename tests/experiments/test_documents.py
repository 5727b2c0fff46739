"""What the documents say runs as they say it."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

import routed_rl.routing.table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
ROUTING = ROOT / "docs" / "routing.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README + ROUTING.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_readme_examples_run(number, tmp_path):
    code = EXAMPLES[number]
    if code.startswith("info["):
        pytest.skip("a fragment that shows the info contract")
    for large, small in (("500_000", "2_048"), ("256,", "8,"), ("1024,", "16,")):
        code = code.replace(large, small)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == (["agent"] if "model.save" in code else [])


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

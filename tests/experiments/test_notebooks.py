"""The notebooks of the documentation run: in a reduced form, and in full in slow tests."""

import ast
import os
import re
import runpy
import textwrap
from pathlib import Path

import jupytext
import matplotlib
import pytest
from PIL import Image

from tests import forks

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"
NOTEBOOKS = [path for path in sorted(TUTORIALS.glob("*.md")) if "kernelspec" in jupytext.read(path).metadata]
IDS = [path.stem for path in NOTEBOOKS]
WIDEST, LARGEST = 900, 150_000
"""Pixels and bytes of a picture that is shown on the site."""

REDUCED = {
    "cut_out_a_topic": "stories, steps, repair_steps, tested = 200, 3, 2, 40",
    "route_an_agent": "total_steps, episodes = 2_048, 100",
    "route_any_network": "steps, copies = 10, 20",
    "run_a_study": "methods, controls, seeds, total_steps = ['routing'], [], 1, 1_024",
    "unlearn_attack_undo": (
        "people, steps, distil_steps, measured = 120, 3, 2, (0, 2)\n"
        "import dataclasses, routed_rl.unlearning\n"
        "routed_rl.unlearning.MaxEnt.recipe = dataclasses.replace(routed_rl.unlearning.MaxEnt.recipe, steps=6)"
    ),
}
"""Notebook → smaller values of what its cell with the tag ``parameters`` sets, and of a default of the library."""

FACTS = {
    "cut_out_a_topic": """
        assert model.num_parameters() == small == repaired.num_parameters()
        assert all(abs(losses["expanded"][what] - loss) < 1e-5 for what, loss in losses["new model"].items())
        assert all(losses["ablated"][what] != loss for what, loss in losses["routed"].items())
    """,
    "route_an_agent": """
        assert torch.equal(policies["snacks ablated"], policies["steered to desk"])
        assert not torch.equal(policies["steered to snacks"], policies["steered to desk"])
        assert model.num_timesteps >= total_steps
    """,
    "route_any_network": """
        for exact, (before, after) in moved.items():
            assert torch.equal(before, after) == exact and before[0, 1] < -0.5, exact
        assert all(abs(found - (1 - p) / (2 - p)) < 1e-5 for p, found in zip(shares, left, strict=True))
        assert outputs["routed"][1] == 0 > outputs["unrouted"][1]
    """,
    "run_a_study": """
        assert study.plan().finished.all() and set(results.method) == {"routing"}
        agents = set(Path(OUT).glob("runs/*/*/model/*.safetensors"))
        assert len(agents) == 1 and returns.keys() == {"routed", "routed, contrastive"}
        written = {path: path.stat().st_mtime_ns for path in agents}
        assert study.run(OUT, workers=workers).equals(results)
        assert written == {path: path.stat().st_mtime_ns for path in agents}
    """,
    "unlearn_attack_undo": """
        again = trained(corpus.documents("train")).state_dict()
        assert all(torch.equal(again[name], weight) for name, weight in reference.state_dict().items())
        for model in (unlearned, *students.values()):
            assert any(not torch.equal(again[name], weight) for name, weight in model.state_dict().items())
        assert len({tuple(curve) for curve in worst.values()}) == len(worst) == 4
    """,
}
"""Notebook → what holds at its end, said with its own names, and cannot hold by accident."""


def script(notebook, reduced="", facts=""):
    """Return the code of a notebook, with reduced values after its parameters, and what must hold at the end."""
    code = []
    for cell in jupytext.read(notebook).cells:
        if cell.cell_type == "code":
            code.append(cell.source)
            if "parameters" in cell.metadata.get("tags", []):
                assert names_set(reduced) <= names_set(cell.source), f"{notebook.name} has other parameters: {reduced}"
                code.append(reduced)
    assert reduced in code, f"{notebook.name} has no cell with the tag 'parameters'"
    return "\n\n".join([*code, textwrap.dedent(facts)])


def names_set(code):
    """Return the names that a cell assigns to."""
    named = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name))
    return {node.id for node in named if isinstance(node.ctx, ast.Store)}


def run(notebook, folder, reduced="", facts=""):
    """Run a notebook in a process of its own in a folder, and check that it has drawn its picture."""
    (folder / "notebook.py").write_text(script(notebook, reduced, facts))
    assert forks.run(folder / "log", execute, folder) == 0, (folder / "log").read_text()
    with Image.open(folder / f"{notebook.stem}.png") as drawn, Image.open(notebook.with_suffix(".png")) as shown:
        assert drawn.size == shown.size


def execute(folder):
    matplotlib.use("agg")
    os.chdir(folder)
    runpy.run_path("notebook.py", run_name="__main__")


@pytest.mark.integration
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=IDS)
def test_a_notebook_runs_in_a_reduced_form(notebook, tmp_path):
    assert notebook.stem in REDUCED and notebook.stem in FACTS, "say here how to reduce it, and what holds at its end"
    run(notebook, tmp_path, REDUCED[notebook.stem], FACTS[notebook.stem])


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=IDS)
def test_a_notebook_runs_in_full(notebook, tmp_path):
    run(notebook, tmp_path)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=IDS)
def test_a_notebook_shows_the_picture_that_it_draws_last(notebook):
    *_, last, page = jupytext.read(notebook).cells
    picture = notebook.with_suffix(".png")
    assert last.cell_type == "code" and f'savefig("{picture.name}", dpi=110)' in last.source
    assert re.match(rf"!\[[^]]+\]\({picture.name}\)", page.source)
    assert picture.stat().st_size <= LARGEST
    with Image.open(picture) as shown:
        assert shown.width <= WIDEST

"""The documentation site. ``make docs`` builds it with Sphinx, without a network, and fails on any warning."""

import tomllib
import zlib
from importlib.metadata import version as installed
from pathlib import Path

from sphinx.util.nodes import make_refnode

HERE = Path(__file__).parent

FOREIGN = """
    ActorCriticPolicy BaseAlgorithm BaseCallback Env EvalCallback EventCallback Exception GRPOTrainer MiniGridEnv
    Module ObservationWrapper OnPolicyAlgorithm Trainer VecEnv VecEnvWrapper VectorEnv Wrapper dict tuple
"""
"""Classes of others. Pages do not list what our classes inherit from these, only what they inherit from each other."""

project = "routed_rl"
release = version = installed("routed-rl")
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "index"
nitpicky = True
myst_heading_anchors = 4
nb_execution_mode = "off"  # in full form the notebooks take minutes; tests/experiments/test_notebooks.py executes them
html_theme = "furo"
html_title = "routed_rl"
html_copy_source = False

autodoc_default_options = {
    "members": True,
    "imported-members": True,
    "show-inheritance": True,
    "inherited-members": ",".join(FOREIGN.split()),
}
autodoc_member_order = "groupwise"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"


def inventory(project: str, roles: dict[str, dict[str, str]]) -> str:
    """Write the objects of another project's site in the format of Sphinx, and return the path."""
    lines = [f"{name} py:{role} 1 {page} -" for role, pages in roles.items() for name, page in pages.items()]
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# The rest is compressed using zlib.\n"
    path = HERE.parent / "dist" / "inventories" / f"{project}.inv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head.encode() + zlib.compress("\n".join([*lines, ""]).encode()))
    return str(path)


intersphinx_mapping = {
    project: (pages.pop("url"), inventory(project, pages))
    for project, pages in tomllib.loads((HERE / "inventories.toml").read_text()).items()
}


# Types of our own that no page describes, in signatures of public functions: those of inner modules.
nitpick_ignore = [
    ("py:exc", "UserError"),
    ("py:exc", "RunsFailedError"),
    ("py:class", "Agent"),
    ("py:class", "JSON"),
    ("py:class", "StrPath"),
    ("py:obj", "typing.Literal['fp32'"),
]
nitpick_ignore_regex = [(r"py:.*", r"routed_rl\.\w+\.[a-z_0-9]+\..+"), (r"py:.*", r"routed_rl\.(options|errors)\..+")]

prose: dict[str, list[str]] = {}


def keep(app, what, name, obj, options, lines):
    """Keep what napoleon would misread: it takes the words before a colon in an attribute's docstring for a type."""
    if what in ("attribute", "property"):
        prose[name] = lines[:]


def restore(app, what, name, obj, options, lines):
    """Put back what was kept, after napoleon."""
    lines[:] = prose.pop(name, lines)


def shorter(app, env, node, contnode):
    """Find a name of ours that is written without its module, as it is read in Python's help."""
    domain = env.domains.python_domain
    if node.get("refdomain") == "py":
        found = domain.find_obj(env, None, None, node["reftarget"], node["reftype"], searchmode=1)
        if len(found) == 1:
            name, entry = found[0]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)


def setup(app):
    """Connect the functions above to Sphinx, which calls this function."""
    app.connect("missing-reference", shorter)
    app.connect("autodoc-process-docstring", keep, priority=1)
    app.connect("autodoc-process-docstring", restore, priority=999)

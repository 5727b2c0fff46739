"""The documentation site. ``make docs`` builds it with Sphinx, without a network, and fails on any warning."""

import tomllib
import zlib
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent

project = "routed_rl"
release = version = installed("routed-rl")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "index"
nitpicky = True
myst_heading_anchors = 4
html_theme = "furo"
html_title = "routed_rl"
html_copy_source = False

autodoc_default_options = {"members": True, "imported-members": True, "show-inheritance": True}
autodoc_member_order = "groupwise"
napoleon_numpy_docstring = False


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


def setup(app):
    app.connect("autodoc-process-docstring", plain_attribute, priority=1)


def plain_attribute(app, what, name, obj, options, lines):
    """Keep napoleon from reading the words before a colon as a type: our docstrings of attributes are prose."""
    if what == "attribute":
        lines.insert(0, "")

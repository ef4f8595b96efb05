"""The documentation as a site: the repository's Markdown files as they are, so that nothing is written twice.

scripts/check docs     # strictly: a link, an anchor or a page without a place in the menu that is wrong fails the build
"""

import shutil
from pathlib import Path

from sphinx.application import Sphinx

project = "xares-bench"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "README"
# The source folder is the repository's root, where all links between pages are the ones that GitHub follows.
include_patterns = ["*.md", "docs/*.md", "benchmarks/**.md", "fixtures/**.md"]
html_theme = "furo"
html_title = project
myst_heading_anchors = 4
nitpicky = True
# Text stays as it is on GitHub: -- is no dash.
smartquotes = False

MENU = {
    "Use": [
        "run",
        "sweeps",
        "python",
        "encoders",
        "datasets",
        "scores",
        "robustness",
        "reports",
        "results",
        "ci",
        "docker",
        "download",
        "captions",
        "gpus",
    ],
    "Rely on": ["reliability", "performance", "differences", "releases", "../CHANGELOG", "../SECURITY"],
    "Measured": ["../benchmarks/README", "../benchmarks/results/README", "../benchmarks/real_parts/README"],
    "Change the code": ["../CONTRIBUTING", "../ARCHITECTURE", "decisions", "log", "../fixtures/mini/README"],
}


def add_menu(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the menu to the home page, the README."""
    if page != root_doc:
        return
    for caption, pages in MENU.items():
        paths = "\n".join(name.removeprefix("../") if name.startswith("../") else f"docs/{name}" for name in pages)
        source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{paths}\n```\n"


def name_home(app: Sphinx, problem: Exception | None) -> None:
    """Give the home page the name that web servers look for."""
    if problem is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Connect both."""
    app.connect("source-read", add_menu)
    app.connect("build-finished", name_home)

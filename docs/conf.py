"""How Sphinx builds the documentation: `make docs`."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
# What Salt loads is documented under the names that operators call: `virtualenv_tools.check`.
sys.path[:0] = [str(CHECKOUT / kind) for kind in ("_modules", "_runners", "_states")]

_METADATA = (CHECKOUT / "pyproject.toml").read_text(encoding="utf-8")
_VERSION = re.search(r'^version = "(.+)"$', _METADATA, re.M)
assert _VERSION

project = "virtualenv-tools for Salt"
copyright = "its authors, Apache-2.0"  # noqa: A001
version = release = _VERSION[1]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
maximum_signature_line_length = 80
if importlib.util.find_spec("salt") is None:
    autodoc_mock_imports = ["salt"]

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "salt": ("https://docs.saltproject.io/en/latest", None),
}
intersphinx_timeout = 5

html_theme = "furo"
html_title = f"virtualenv-tools {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False


class _Offline(logging.Filter):
    """Let the pages be built without a network: only the links to Salt and Python are missing."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "failed to reach any of the inventories" not in str(record.msg)


# Where the files of the top directory are on the site; they link to each other by their names.
_PAGES = {
    "README.md": "../index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security-policy.md",
}


def _link_top_files(app: Any, path: Path, parent: str, content: list[str]) -> None:
    """Point the links between the files of the top directory to their pages."""
    for file, page in _PAGES.items():
        content[0] = content[0].replace(f"]({file})", f"]({page})")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("include-read", _link_top_files)


logging.getLogger("sphinx.sphinx.ext.intersphinx").addFilter(_Offline())

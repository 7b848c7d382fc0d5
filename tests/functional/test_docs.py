"""README.md and `docs/`: what they refer to exists, and the site has a place for every function."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import relocate_core
from relocate_core import cli
from relocate_core.releases import root, smoke
from relocate_core.releases.schemas import recipe
from tests.support.minions import CHECKOUT, Masterless

DOCS = CHECKOUT / "docs"
TOP = [CHECKOUT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "SECURITY")]
# What `make docs` leaves there is no page.
SITE = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)
PAGES = [*TOP, *SITE]

FENCED = re.compile(r"^( *)```([\w{}-]*)\n(.*?)^\1```$", re.M | re.S)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MODULES = {
    "virtualenv_tools": "_modules/virtualenv_tools.py",
    "virtualenv_relocated": "_states/virtualenv_relocated.py",
    "release_programs": "_states/release_programs.py",
    "releases_pillar": "_modules/releases_pillar.py",
    "releases": "_runners/releases.py",
}
NAMED = re.compile(rf"(?<![\w./:-])({'|'.join(MODULES)})\.(?!md\b|py\b)(\w+)")


def name_of(page: Path) -> str:
    """A page as test reports have it."""
    return str(page.relative_to(CHECKOUT))


def by_page(values: list[Path]) -> Any:
    """Run a test once a page."""
    return pytest.mark.parametrize("page", values, ids=map(name_of, values))


# --- what a page refers to exists -----------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What a link may point to in a page: its headings, as GitHub spells them."""
    headings = re.findall(r"^#+ +(.*)$", FENCED.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


@by_page(PAGES)
def test_links_point_to_something(page: Path) -> None:
    for link in LINK.findall(FENCED.sub("", page.read_text())):
        if re.match(r"\w+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index() -> None:
    index = DOCS / "index.md"
    linked = {(index.parent / link).resolve() for link in LINK.findall(index.read_text())}
    assert set(SITE) <= {*linked, index}


def test_the_architecture_lists_every_module_of_the_core() -> None:
    """In the listing of its rooms, each beside its package, and none that is not there."""
    (listing,) = re.findall(r"```\n(relocate_core/\n.*?)```", TOP[1].read_text(), re.S)
    found: dict[str, set[str]] = {}
    package = ""
    for line in listing.splitlines()[1:]:
        depth = len(line) - len(line.lstrip())
        words = line.split("(")[0].split()
        if depth == 2:  # with what it is for behind it
            package = words[0]
            found.setdefault("", set()).add(package)
        else:
            found.setdefault(package, set()).update(words)
    core = CHECKOUT / "relocate_core"
    for package in sorted(name for name in found[""] if name.endswith("/")):
        modules = {path.stem for path in (core / package).rglob("*.py")} - {"__init__"}
        inner = {path.name + "/" for path in (core / package).rglob("*") if path.is_dir()}
        assert found[package] == modules | inner - {"__pycache__/"}, package
    assert {name for name in found[""] if name.endswith(".py")} == {
        path.name for path in core.glob("*.py") if path.name != "__main__.py"
    }


def test_the_quick_start_builds_what_its_pillar_deploys() -> None:
    text = (CHECKOUT / "README.md").read_text()
    release = re.search(r"^      release: '(\w+)'$", text, re.M)
    assert release
    assert f"virtualenv_tools.build /srv/salt/shop/{release[1]}.tar.gz" in text


def test_the_readme_is_short() -> None:
    assert len((CHECKOUT / "README.md").read_text().split()) <= 700


@functools.cache
def public(module: str) -> set[str]:
    """The names of a module's functions; those of a runner are called as the SLS files are."""
    body = ast.parse((CHECKOUT / MODULES[module]).read_text()).body
    names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    if module == "releases":
        names |= {path.stem for path in (CHECKOUT / "formula" / "releases").glob("*.sls")}
    return {name for name in names if name[0] != "_"}


@by_page(PAGES)
def test_functions_and_sls_files_are_there(page: Path) -> None:
    for module, name in NAMED.findall(page.read_text()):
        assert name in public(module), f"{module}.{name}"


def test_options_are_there() -> None:
    known = set(cli._parser()._option_string_actions)
    lines = [line for page in PAGES for line in page.read_text().splitlines()]
    used = {
        option
        for line in lines
        if re.search(r"(?<![\w/])(?:virtualenv-tools|-m relocate_core) ", line)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)
    }
    assert {"--update-path", "--reinitialize", "--pack"} <= used <= known


# --- what is claimed is true ----------------------------------------------------------------------


def words_of(page: str) -> str:
    """A page's text, on one line."""
    return " ".join((DOCS / page).read_text().split())


def test_times_are_those_of_the_code() -> None:
    waits = {
        inspect.signature(function).parameters["wait"].default
        for function in (relocate_core.relocate, relocate_core.reinitialize)
    }
    assert waits == {30}
    assert "`update_path` and `reinitialize` wait 30 seconds; packing does not wait" in words_of(
        "operations.md"
    )
    assert "wait" not in inspect.signature(relocate_core.pack).parameters
    assert root.WAIT == 300
    assert "five minutes by default (`wait`)" in words_of("operations.md")
    assert smoke.SECONDS == 300
    assert "Each smoke test may take 300 seconds" in words_of("operations.md")
    assert recipe.SECONDS == 600
    assert "may take 300 seconds each, migrations 600 (`timeout`)" in words_of("sizing.md")


def test_all_exit_codes_are_described() -> None:
    known = re.findall(r"(?:^|[:;] )(\d+) ", " ".join((cli._parser().epilog or "").split()))
    assert known == re.findall(r"^\| (\d+) \|", (DOCS / "commands.md").read_text(), re.M)
    assert known == ["0", "1", "2", "130"]


class _Everything(dict[str, Any]):
    """A record that has whatever is looked for."""

    def get(self, key: str, default: Any = None) -> Any:
        return key

    def __getitem__(self, key: str) -> Any:
        return key


def test_all_that_releases_returns_is_described() -> None:
    body = ast.parse((CHECKOUT / MODULES["virtualenv_tools"]).read_text()).body
    (function,) = (one for one in body if getattr(one, "name", "") == "releases")
    assert isinstance(function, ast.FunctionDef)
    described = (ast.get_docstring(function) or "").partition("Returns")[2].partition("CLI")[0]
    shared = "/srv/pythons/cpython-3.13.0-1f3a9c0b72de"
    found = root.Release(
        *("1", "/srv/shop/1", _Everything(), ("current",), "it crashes", True, shared),
        python=f"{shared}/bin/python3.13",
        python_version="3.13.0",
    )
    assert set(re.findall(r"``(\w+)``", described)) == set(found.as_dict())


def test_each_entry_for_the_changelog_is_of_a_kind() -> None:
    for entry in (CHECKOUT / "changelog.d").iterdir():
        assert re.fullmatch(
            r"\+[a-z0-9-]+\.(added|changed|fixed|removed)\.md|\.gitignore", entry.name
        )


@by_page(PAGES)
def test_releases_are_named_one_by_one(page: Path) -> None:
    """As `/srv/shop/*` also matches `current` and `shared`."""
    for language in ("console", ""):
        for code in blocks(page, language):
            assert not re.search(r"^[#$] virtualenv-tools .*/\*", code, re.M)


# --- what is shown is right -----------------------------------------------------------------------


def blocks(page: Path, language: str) -> Iterator[str]:
    """The code of a language in a page."""
    for indent, found, code in FENCED.findall(page.read_text()):
        if found == language:
            yield re.sub(rf"^{indent}", "", code, flags=re.M)


def loaded(text: str) -> Any:
    """YAML as Salt reads it, with a word for what Jinja would put in."""
    yaml = pytest.importorskip("yaml")
    text = re.sub(r"\{%.*?%\}\n?", "", text, flags=re.S)
    return yaml.safe_load(re.sub(r"\{\{.*?\}\}", "word", text, flags=re.S))


def pillars(page: Path) -> Iterator[dict[str, Any]]:
    """The pillars of the formula that a page shows, in files and on command lines."""
    shown = [loaded(code) for code in blocks(page, "yaml")]
    shown += [loaded(code) for code in re.findall(r"pillar='(\{.*?\})'", page.read_text(), re.S)]
    yield from (one for one in shown if isinstance(one, dict) and "releases" in one)


def is_whole(app: Any) -> bool:
    return isinstance(app, dict) and {"release", "source"} <= set(app)


@by_page(PAGES)
def test_yaml_is_yaml(page: Path) -> None:
    for code in blocks(page, "yaml"):
        assert loaded(code), code


@pytest.fixture(scope="module")
def minion(tmp_path_factory: pytest.TempPathFactory) -> Masterless:
    """A minion to ask for the formula's settings."""
    pytest.importorskip("salt", reason="Salt does not run on this Python")
    return Masterless(tmp_path_factory.mktemp("minion"))


def test_pillars_are_accepted(minion: Masterless) -> None:
    whole = 0
    for page in PAGES:
        for pillar in pillars(page):
            apps = pillar["releases"].get("apps", {})
            whole += bool(apps) and all(map(is_whole, apps.values()))
            names = pillar["releases"].get("run", {}).get("app") or []
            some = {"release": "1", "source": "salt://shop/{release}.tar.gz"}
            for name in [names] if isinstance(names, str) else names:
                apps.setdefault(name, some)  # what the pillar has, which this is given for one run
            apps = {name: {**some, **app} for name, app in apps.items()}
            minion.functions.pack["__pillar__"].clear()
            minion.functions.pack["__pillar__"]["releases"] = {**pillar["releases"], "apps": apps}
            found = minion.functions["releases_pillar.settings"]()
            assert found["problem"] is None, (name_of(page), found["problem"])
    assert whole >= 2


# --- the reference --------------------------------------------------------------------------------


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_has_every_function(module: str) -> None:
    name = "releases-runner" if module == "releases" else module
    page = (DOCS / "reference" / f"{name}.md").read_text()
    body = ast.parse((CHECKOUT / MODULES[module]).read_text()).body
    names = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    found = [name for name in names if not name.startswith(("_", "mod_watch"))]
    assert re.findall(r"^## (.*)$", page, re.M) == found
    assert re.findall(r"^\.\. autofunction:: (.*)$", page, re.M) == [f"{module}.{n}" for n in found]

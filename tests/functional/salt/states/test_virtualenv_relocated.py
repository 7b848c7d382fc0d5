"""The states, as Salt's own compiler runs them on a masterless minion."""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import environments, minions, roots, signing
from tests.support.minions import WHICH, Masterless, Web
from tests.support.signing import Keys

pytest.importorskip("salt", reason="Salt does not run on this Python")

NOBODY = 65534
NAMES = ("1", "2", "3")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


# --- what the tests need --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minion(tmp_path_factory: pytest.TempPathFactory) -> Masterless:
    """A minion that has synced, with an environment beside `base`."""
    directory = tmp_path_factory.mktemp("minion")
    (directory / "dev").mkdir()
    made = Masterless(
        directory, file_roots={"base": [str(directory / "root")], "dev": [str(directory / "dev")]}
    )
    for name in NAMES:
        minions.pack(made.root / "app" / f"{name}.tar", name)
    return made


@pytest.fixture(scope="module")
def served() -> Iterator[Web]:
    """A web server for all tests."""
    with minions.web() as site:
        yield site


@pytest.fixture
def site(served: Web, minion: Masterless) -> Web:
    """The web server, with the archives."""
    served.pages = {
        f"/{name}.tar": (minion.root / "app" / f"{name}.tar").read_bytes() for name in NAMES
    }
    served.pages["/page"] = b"all is well\n"
    served.reset()
    return served


@dataclass
class App:
    """An app on the minion: its root, and the archives of its releases.

    Attributes:
        minion: the minion.
        site: a web server that has the archives as well.
        root: the directory of the releases.
    """

    minion: Masterless
    site: Web
    root: str

    def path(self, name: str) -> str:
        """What is at a name in the root."""
        return os.path.join(self.root, name)

    def archive(self, name: str) -> str:
        """The archive of a release, as a path."""
        return str(self.minion.root / "app" / f"{name}.tar")

    def call(self, function: str, *arguments: Any, **options: Any) -> Any:
        """Call one of our execution functions."""
        return self.minion.functions[f"virtualenv_tools.{function}"](*arguments, **options)

    def deploy(self, *names: str) -> None:
        """Deploy and activate releases, one after the other."""
        for name in names:
            self.call("unpack", self.archive(name), self.path(name))
            self.call("activate", self.path(name))

    def single(self, function: str, name: str, **arguments: Any) -> dict[str, Any]:
        """Apply a state to a name in the root, or to the root itself for ''."""
        return self.minion.single(function, self.path(name) if name else self.root, **arguments)

    def apply(self, sls: str, **options: Any) -> dict[str, dict[str, Any]]:
        """Apply an SLS, with `ROOT` and `SITE` put in."""
        text = textwrap.dedent(sls).replace("ROOT", self.root).replace("SITE", self.site.url)
        return self.minion.apply(text, **options)

    def world(self) -> tuple[Any, ...]:
        """All that a state must not touch in vain: the tree, the cache, the web server."""
        return (
            environments.digest(os.path.dirname(self.root)),
            self.minion.fetched(),
            list(self.site.requests),
        )

    def thrice(
        self, function: str, name: str, **arguments: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Apply a state as a test, for real, and twice in vain; what it announced and did."""
        before = self.world()
        said = self.single(function, name, test=True, **arguments)
        assert said["result"] is None, said
        assert said["changes"], said
        assert "would be" in said["comment"] or "would point" in said["comment"], said
        assert self.world() == before
        done = self.single(function, name, **arguments)
        assert done["result"] is True, done
        for key, value in said["changes"].items():
            assert done["changes"].get(key) == value, (said, done)
        self.in_vain(function, name, **arguments)
        return said, done

    def in_vain(self, function: str, name: str, **arguments: Any) -> None:
        """There is nothing to do for a state, as a test and for real, and it does nothing."""
        before = self.world()
        for test in (True, False):
            again = self.single(function, name, test=test, **arguments)
            assert (again["result"], again["changes"]) == (True, {}), again
            assert self.world() == before

    def refused(
        self, function: str, name: str, words: str, announced: bool = False, **arguments: Any
    ) -> str:
        """A state fails with these words, and leaves everything as it was; its comment.

        Args:
            function: the state.
            name: in the root.
            words: a regular expression that its comment has to match.
            announced: whether a test does not see that it would fail, as it fetches nothing.
            arguments: of the state.
        """
        before = self.world()
        said = self.single(function, name, test=True, **arguments)
        assert said["result"] is (None if announced else False), said
        assert self.world() == before
        kept = self.kept()
        done = self.single(function, name, **arguments)
        assert (done["result"], done["changes"]) == (False, {}), done
        assert re.search(words, done["comment"]), done["comment"]
        if not announced:
            assert (said["comment"], said["changes"]) == (done["comment"], {})
        assert self.kept() == kept
        return str(done["comment"])

    def kept(self) -> dict[str, Any]:
        """The tree without times, and without the records that a lock leaves."""
        if not os.path.isdir(self.root):
            return {}
        assert not os.path.exists(self.path(".releases")) or not os.listdir(
            self.path(".releases/staging")
        )
        return {
            path: facts
            for path, facts in environments.digest(self.root, times="none").items()
            if path.split("/")[0] not in (".", ".releases")
        }

    def current(self) -> str | None:
        """What `current` says."""
        link = self.path("current")
        return os.readlink(link) if os.path.islink(link) else None

    def output(self, *command: str) -> str:
        """What a command says."""
        return environments.run(*command)


@pytest.fixture
def app(minion: Masterless, site: Web, tmp_path: Path) -> App:
    """An app without releases yet."""
    (tmp_path / "srv").mkdir()
    return App(minion, site, str(tmp_path / "srv" / "app"))


@pytest.fixture
def public(minion: Masterless, site: Web) -> Iterator[App]:
    """An app in a directory that every user may enter."""
    directory = tempfile.mkdtemp(prefix="app-")
    os.chmod(directory, 0o755)
    yield App(minion, site, os.path.join(directory, "app"))
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def for_all(minion: Masterless) -> str:
    """An archive of a release that every user may run."""
    roots.packed(minion.root / "app", "all", python=roots.python_for_all())
    return "salt://app/all.tar"


@pytest.fixture(scope="module")
def deployed(
    minion: Masterless, served: Web, tmp_path_factory: pytest.TempPathFactory
) -> tuple[App, Path]:
    """An app whose release 2 is active, after 1, and a copy of its root; deployed once."""
    directory = tmp_path_factory.mktemp("two")
    app = App(minion, served, str(directory / "srv" / "app"))
    app.deploy("1", "2")
    return app, Path(environments.copy(app.root, directory / "kept"))


@pytest.fixture
def two(deployed: tuple[App, Path], site: Web) -> App:
    """An app whose release 2 is active, after 1."""
    app, kept = deployed
    shutil.rmtree(os.path.dirname(app.root))
    environments.copy(kept, app.root)
    return app


def hashed(path: str, algorithm: str = "sha256") -> str:
    """A file's hash."""
    return hashlib.new(algorithm, Path(path).read_bytes()).hexdigest()


def broken(release: str) -> str:
    """Let a release's Python be gone, as after an upgrade of the host; where it pointed to."""
    python = os.path.join(release, "bin", "python")
    before = os.readlink(python)
    os.unlink(python)
    os.symlink(f"/opt/gone/bin/{os.path.basename(before)}", python)
    return before


# --- managed: where it comes from -----------------------------------------------------------------

SOURCES = {
    "path": "PATH",
    "file": "file://PATH",
    "salt": "salt://app/1.tar",
    "http": "SITE/1.tar",
    "paths, the first is missing": ["/nowhere/1.tar", "PATH"],
    "salt, the first is missing": ["salt://app/nowhere.tar", "salt://app/1.tar"],
    "http, the first is missing": ["SITE/nowhere.tar", "SITE/1.tar"],
    "mixed": ["salt://app/nowhere.tar", "SITE/nowhere.tar", "PATH", "SITE/1.tar"],
}


def places(value: Any, app: App) -> Any:
    """Sources with the places put in."""
    text = json.dumps(value).replace("PATH", app.archive("1")).replace("SITE", app.site.url)
    return json.loads(text)


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.few(3)
def test_a_release_is_deployed(app: App, kind: str) -> None:
    source = places(SOURCES[kind], app)
    cached = app.minion.fetched()
    said, done = app.thrice("managed", "1", source=source, source_hash=hashed(app.archive("1")))
    release = app.path("1")
    sources = [source] if isinstance(source, str) else source
    assert said["comment"] == f"{release} would be deployed from {' or '.join(sources)}."
    assert said["changes"] == {"release": {"old": None, "new": release}}
    assert set(done["changes"]) == {"release", "files", "python", "rewritten"}
    assert {"activation", "bytecode", "metadata", "script"} <= set(done["changes"]["rewritten"])
    assert all(count > 0 for count in done["changes"]["rewritten"].values())
    assert done["changes"]["files"] > 30
    assert os.access(done["changes"]["python"], os.X_OK)
    taken = next(one for one in reversed(sources) if "nowhere" not in one)
    if kind != "mixed":
        assert f"from {taken}: " in done["comment"]
        assert app.call("releases", app.root)["1"]["source"] == taken
    assert Path(release, WHICH).read_text() == "1\n"
    assert app.output(f"{release}/bin/omega").splitlines()[1] == release
    assert app.minion.fetched() == cached
    assert os.path.exists(app.archive("1"))
    assert oct(os.stat(release).st_mode & 0o7777) == "0o755"


@pytest.mark.parametrize("source", ["salt://app/2.tar", "ARCHIVE"])
@pytest.mark.few(1)
def test_what_differs_from_the_active_release(source: str, app: App) -> None:
    """Reported before as well where a bundle is at hand; a plain tar is not read for that."""
    app.deploy("1")
    (packages,) = Path(app.path("1")).glob("lib/*/site-packages")
    (dist,) = packages.glob("omega-*.dist-info")
    dist.rename(packages / "omega-0.9.dist-info")
    version = dist.name[len("omega-") : -len(".dist-info")]
    source = source.replace("ARCHIVE", app.archive("2"))
    said = app.single("managed", "2", source=source, test=True)
    assert "packages" not in said["changes"]
    done = app.single("managed", "2", source=source)
    assert done["changes"]["packages"] == f"omega 0.9 -> {version} (since 1)"
    bundle = str(app.minion.root / "app" / "2.tar.gz")
    app.call("pack", app.path("2"), bundle)
    said = app.single("managed", "3", source=bundle, test=True)
    assert said["changes"]["packages"] == f"omega 0.9 -> {version} (since 1)"


@pytest.mark.parametrize("listed", [False, True], ids=["one", "list"])
def test_http_is_asked_only_where_the_release_is_missing(app: App, listed: bool) -> None:
    url = f"{app.site.url}/1.tar"
    source = [url] if listed else url
    app.thrice("managed", "1", source=source, source_hash=f"sha256={hashed(app.archive('1'))}")
    assert app.site.requests.count("GET /1.tar") == 1
    count = len(app.site.requests)
    app.in_vain("managed", "1", source=source, source_hash=f"{app.site.url}/never-asked-for")
    assert len(app.site.requests) == count


@pytest.mark.parametrize("kind", ["http", "salt", "path"])
def test_a_source_with_its_hash(app: App, kind: str) -> None:
    source = places(SOURCES[kind], app)
    listed = [{"salt://app/nowhere.tar": "sha256=" + "0" * 64}, {source: hashed(app.archive("1"))}]
    app.thrice("managed", "1", source=listed)
    assert os.path.isdir(app.path("1"))


@pytest.mark.parametrize("kind", ["http", "salt", "path"])
def test_a_source_with_its_hash_alone(app: App, kind: str) -> None:
    source = {places(SOURCES[kind], app): f"sha256={hashed(app.archive('1'))}"}
    app.thrice("managed", "1", source=source)


@pytest.mark.parametrize("kind", ["http", "salt", "path"])
def test_a_source_with_a_wrong_hash_of_its_own(app: App, kind: str) -> None:
    source = places(SOURCES[kind], app)
    app.refused("managed", "1", "hash|sha256", announced=True, source=[{source: "0" * 64}])


def test_a_source_of_the_environment_of_the_sls(app: App) -> None:
    dev = Path(app.minion.opts["file_roots"]["dev"][0])
    shutil.copy(app.archive("1"), dev / "only-there.tar")
    sls = (
        f"{app.path('1')}:\n  virtualenv_relocated.managed:\n    - source: salt://only-there.tar\n"
    )
    (dev / "deploy.sls").write_text(sls)
    answers = app.minion.functions["state.apply"]("deploy", saltenv="dev")
    (answer,) = answers.values()
    assert answer["result"] is True, answer
    app.refused(
        "managed", "2", "Cannot fetch .*only-there", announced=True, source="salt://only-there.tar"
    )


# --- managed: hashes ------------------------------------------------------------------------------

HASHES = {
    "sha256=": "sha256={sha256}",
    "sha512=": "sha512={sha512}",
    "upper case": "sha256={SHA256}",
    "md5": "{md5}",
    "sha1": "{sha1}",
    "sha224": "{sha224}",
    "sha256": "{sha256}",
    "sha384": "{sha384}",
    "sha512": "{sha512}",
}


@pytest.mark.parametrize("kind", ["path", "http"])
@pytest.mark.parametrize("form", HASHES)
@pytest.mark.few(3)
def test_a_hash(app: App, form: str, kind: str) -> None:
    algorithms = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
    known = {name: hashed(app.archive("1"), name) for name in algorithms}
    right = HASHES[form].format(SHA256=known["sha256"].upper(), **known)
    wrong = right[:-4] + "0000"
    source = places(SOURCES[kind], app)
    app.refused("managed", "1", "hash|sha|md5", announced=True, source=source, source_hash=wrong)
    assert not os.path.exists(app.path("1"))
    done = app.single("managed", "1", source=source, source_hash=right)
    assert done["result"] is True, done
    app.in_vain("managed", "1", source=source, source_hash=right)


@pytest.mark.parametrize("kind", ["salt", "path", "file", "http"])
@pytest.mark.parametrize("named", [False, True], ids=["by the name", "source_hash_name"])
@pytest.mark.few(3)
def test_a_file_of_hashes(app: App, kind: str, named: bool, tmp_path: Path) -> None:
    lines = [f"{hashed(app.archive(name))}  {name}.tar\n" for name in NAMES]
    lines.append(f"{hashed(app.archive('1'))}  build/named.tar\n")
    text = "# hashes of today\n" + "".join(lines)
    file = app.minion.root / "app" / "SHA256SUMS"
    file.write_text(text)
    app.site.pages["/SHA256SUMS"] = text.encode()
    source_hash = {
        "salt": "salt://app/SHA256SUMS",
        "path": str(file),
        "file": f"file://{file}",
        "http": f"{app.site.url}/SHA256SUMS",
    }[kind]
    more = {"source_hash_name": "build/named.tar"} if named else {}
    app.site.pages["/other.tar"] = app.site.pages["/1.tar"]
    url = f"{app.site.url}/{'other' if named else '1'}.tar"
    done = app.single("managed", "1", source=url, source_hash=source_hash, **more)
    assert done["result"] is True, done
    app.in_vain("managed", "1", source=url, source_hash=source_hash, **more)
    if named:
        app.refused(
            *("managed", "2", "hash|sha256"),
            announced=True,
            source=f"{app.site.url}/2.tar",
            source_hash=source_hash,
            **more,
        )


@pytest.mark.parametrize(
    ("source_hash", "words"),
    [
        ("nonsense", "Source hash nonsense format is invalid"),
        ("sha256=1234", "[Ii]nvalid|length|hash"),
        ("crc=1234", "[Ii]nvalid|hash"),
        ("salt://app/no-such-file", "no-such-file"),
        ("/nowhere/SHA256SUMS", "SHA256SUMS"),
    ],
)
@pytest.mark.parametrize("kind", ["path", "http"])
def test_a_hash_that_is_none(app: App, kind: str, source_hash: str, words: str) -> None:
    source = places(SOURCES[kind], app)
    app.refused("managed", "1", words, announced=True, source=source, source_hash=source_hash)


def test_what_cannot_be_verified(app: App) -> None:
    url = f"{app.site.url}/1.tar"
    words = f"Cannot verify {url}: give its source_hash, or skip_verify: True"
    app.refused("managed", "1", words, source=url)
    app.refused("managed", "1", words, source=["salt://app/nowhere.tar", url])
    assert app.site.requests == []
    app.thrice("managed", "1", source=url, skip_verify=True)


# --- managed: the archive -------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz", "tar.bz2", "tar.zst", "bin"])
@pytest.mark.few(2)
def test_compression(app: App, suffix: str) -> None:
    minions.pack(app.minion.root / "packed" / f"app.{suffix}", "1")
    app.thrice("managed", "1", source=f"salt://packed/app.{suffix}")
    assert Path(app.path("1"), WHICH).read_text() == "1\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("salt://app/nowhere.tar", "Cannot fetch salt://app/nowhere.tar: "),
        ("/nowhere/1.tar", "/nowhere/1.tar"),
        ("file:///nowhere/1.tar", "/nowhere/1.tar"),
        (["/nowhere/1.tar", "salt://app/nowhere.tar"], "None of the|nowhere"),
    ],
    ids=["salt", "path", "file", "list"],
)
def test_a_source_that_is_not_there(app: App, source: Any, words: str) -> None:
    announced = not str(source).startswith(("/", "file:"))
    app.refused("managed", "1", words, announced=announced, source=source)


def test_a_page_that_is_not_there(app: App) -> None:
    url = f"{app.site.url}/nowhere.tar"
    app.refused("managed", "1", url, announced=True, source=url, source_hash="0" * 64)
    app.refused("managed", "1", url, announced=True, source=url, skip_verify=True)
    app.refused("managed", "1", "none|None", announced=True, source=[url], source_hash="0" * 64)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "ource is missing: give the archive of the virtualenv"),
        ("", "ource is missing"),
        ([], "ource is missing"),
        (5, "source must be a URL or an absolute path: 5"),
        ([5], "A source must be a URL or an absolute path: 5"),
        ("1.tar", "A source must be a URL or an absolute path: 1.tar"),
        ("app/1.tar", "A source must be a URL or an absolute path: app/1.tar"),
        ([{"salt://a": "x", "salt://b": "y"}], "A source must be a URL or an absolute path"),
    ],
)
def test_a_source_that_is_none(app: App, source: Any, words: str) -> None:
    app.refused("managed", "1", words, source=source)


@pytest.mark.parametrize("kind", ["noise", "torn", "no virtualenv", "empty"])
def test_an_archive_that_is_none(app: App, kind: str, tmp_path: Path) -> None:
    data = Path(app.archive("1")).read_bytes()
    file = tmp_path / "bad.tar"
    if kind == "no virtualenv":
        (tmp_path / "tree" / "bin").mkdir(parents=True)
        environments.run("tar", "cf", str(file), "-C", str(tmp_path / "tree"), ".")
    else:
        file.write_bytes({"noise": os.urandom(5000), "torn": data[:40000], "empty": b""}[kind])
    comment = app.refused("managed", "1", "bad.tar", announced=True, source=str(file))
    assert len(comment) < 400
    assert not os.path.exists(app.path("1"))


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("kind", ["salt", "http"])
def test_the_archive_in_the_cache(app: App, kind: str, kept: bool) -> None:
    before = app.minion.fetched()
    source = places(SOURCES[kind], app)
    source_hash = hashed(app.archive("1"))
    done = app.single("managed", "1", source=source, source_hash=source_hash, keep_source=kept)
    assert done["result"] is True
    more = app.minion.fetched() - before
    assert [os.path.basename(path) for path in more] == (["1.tar"] if kept else [])
    assert os.path.exists(app.archive("1"))
    for path in more:
        os.unlink(path)


def test_a_file_of_the_operator_is_not_removed(app: App) -> None:
    for name, source in (("1", app.archive("1")), ("2", f"file://{app.archive('2')}")):
        assert app.single("managed", name, source=source, keep_source=False)["result"] is True
        assert os.path.exists(app.archive(name))


# --- managed: the release -------------------------------------------------------------------------


@pytest.mark.parametrize("forms", ["executable", "version"])
@pytest.mark.few(1)
def test_the_python_of_ones_choice(app: App, forms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app.call("unpack", app.archive("2"), app.path("2"))
    version = app.call("info", app.path("2"))["python"]
    executable = os.path.realpath(f"{app.path('2')}/bin/python")
    monkeypatch.setenv("PATH", os.path.dirname(executable), prepend=os.pathsep)
    python = executable if forms == "executable" else version
    _, done = app.thrice("managed", "1", source="salt://app/1.tar", python=python)
    assert app.output(f"{app.path('1')}/bin/python", "-V").startswith(f"Python {version}.")
    if forms == "executable":
        assert done["changes"]["python"] == executable


@pytest.mark.parametrize("python", ["/nowhere/python", "no-such-python", "9.99"])
def test_a_python_that_is_not_there(app: App, python: str) -> None:
    app.refused("managed", "1", python, source="salt://app/1.tar", python=python)
    assert not os.path.exists(app.root)


def test_a_python_that_does_not_fit(app: App) -> None:
    app.call("unpack", app.archive("2"), app.path("2"))
    version = app.call("info", app.path("2"))["python"]
    others = [one for one in environments.VERSIONS if one != version]
    other = environments.require_any(others)
    app.refused(
        *("managed", "1", f"{re.escape(version)}.*"),
        announced=True,
        source="salt://app/1.tar",
        python=other,
    )
    assert not os.path.exists(app.path("1"))


def test_a_smoke_test(app: App) -> None:
    smoke = ["omega", "bin/omega", "python -c 'import omega'", f"grep -qx 1 {WHICH}"]
    app.thrice("managed", "1", source="salt://app/1.tar", smoke=smoke)
    app.thrice("managed", "2", source="salt://app/2.tar", smoke="omega | grep omega")


@pytest.mark.parametrize(
    ("smoke", "words"),
    [
        ("echo first; echo 'no settings' >&2; exit 3", r"exit code 3: no settings"),
        (["omega", "exit 4"], "`exit 4` failed .exit code 4"),
        ("no-such-command", "no-such-command"),
        ("python -c 'import nowhere'", "ModuleNotFoundError: No module named 'nowhere'"),
    ],
)
def test_a_smoke_test_that_fails(app: App, smoke: Any, words: str) -> None:
    app.refused("managed", "1", words, announced=True, source="salt://app/1.tar", smoke=smoke)
    assert not os.path.exists(app.path("1"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"smoke": {"a": "b"}}, "smoke must be a command or a list of commands"),
        ({"smoke": [1]}, "smoke must be a command or a list of commands"),
        ({"limits": {"bytes": 5}}, "no limit 'bytes': choose of files, size, ratio"),
        ({"limits": {"files": 0}}, "limit files must be a positive number: 0"),
        ({"limits": {"size": "1G"}}, "limit size must be a positive number: '1G'"),
        ({"limits": "many"}, "limits"),
        ({"limits": [{"files": 5}]}, "limits"),
        ({"mode": "rwx"}, "mode of a release must be octal digits"),
        ({"mode": "0999"}, "mode of a release must be octal digits"),
        ({"mode": "0055"}, "mode of a release must be octal digits"),
        ({"user": "no-such-user"}, "no user no-such-user on this machine"),
        ({"group": "no-such-group"}, "no group no-such-group on this machine"),
        ({"smoke_user": "no-such-user"}, "no user no-such-user on this machine"),
        ({"smoke_user": 54321}, "no user 54321 on this machine"),
        ({"smoke_user": True}, "a user or group must be a name or a number: True"),
        ({"wait": "long"}, "wait"),
        ({"python": "a\nb"}, "line break"),
    ],
    ids=str,
)
def test_a_bad_argument(app: App, arguments: dict[str, Any], words: str) -> None:
    app.refused("managed", "1", f"(?i){words}", source="salt://app/1.tar", **arguments)
    assert not os.path.exists(app.root)


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"files": 5}, "more than 5"), ({"size": 1000}, "1,?000")],
    ids=str,
)
def test_an_archive_that_is_too_much(app: App, limits: dict[str, int], words: str) -> None:
    app.refused("managed", "1", words, announced=True, source="salt://app/1.tar", limits=limits)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("srv/app/1", "must be an absolute path|must be absolute"),
        ("1", "must be absolute"),
        ("/1", "must be in a directory of releases"),
        ("ROOT/current", "no release can be called current"),
        ("ROOT/.releases", "no release can be called .releases"),
        ("ROOT/a\nb", "line break"),
    ],
)
def test_a_name_that_is_none(app: App, name: str, words: str) -> None:
    before = app.world()
    for test in (True, False):
        name = name.replace("ROOT", app.root)
        answer = app.minion.single("managed", name, source="salt://app/1.tar", test=test)
        assert (answer["result"], answer["changes"]) == (False, {})
        assert re.search(f"(?i){words}", answer["comment"]), answer
    assert app.world() == before


@pytest.mark.parametrize("kind", ["directory", "file", "link", "dangling link"])
def test_something_else_at_the_name(app: App, kind: str) -> None:
    os.mkdir(app.root)
    path = Path(app.path("1"))
    if kind == "directory":
        path.mkdir()
        (path / "precious").write_text("kept\n")
    elif kind == "file":
        path.write_text("kept\n")
    else:
        path.symlink_to("/nowhere" if kind == "dangling link" else app.minion.root)
    app.refused("managed", "1", "is no release that was deployed", source="salt://app/1.tar")


def test_a_release_that_was_made_of_another_archive(app: App) -> None:
    digest = hashed(app.archive("1"))
    app.thrice("managed", "1", source="salt://app/1.tar", source_hash=digest)
    app.refused(
        *(
            "managed",
            "1",
            "is deployed, and from another archive .*deploy this one under another name",
        ),
        source="salt://app/2.tar",
        source_hash=f"sha256={hashed(app.archive('2'))}",
    )


def test_a_release_whose_python_has_gone(app: App) -> None:
    app.thrice("managed", "1", source="salt://app/1.tar", source_hash=hashed(app.archive("1")))
    release = app.path("1")
    before = broken(release)
    said, done = None, None
    world = app.world()
    said = app.single("managed", "1", test=True, source="salt://app/nowhere.tar")
    assert said["result"] is None
    assert set(said["changes"]) == {"python"}
    assert app.world() == world
    done = app.single("managed", "1", source="salt://app/nowhere.tar")
    assert done["result"] is True, done
    assert set(done["changes"]) == {"python"}
    assert os.path.realpath(done["changes"]["python"]["new"]) == os.path.realpath(before)
    assert app.output(f"{release}/bin/omega").splitlines()[1] == release
    app.in_vain("managed", "1", source="salt://app/nowhere.tar")


def test_a_release_whose_python_has_gone_for_good(app: App) -> None:
    app.thrice("managed", "1", source="salt://app/1.tar")
    broken(app.path("1"))
    app.refused(
        *("managed", "1", "/nowhere/python"), source="salt://app/1.tar", python="/nowhere/python"
    )


@needs_root
@pytest.mark.parametrize("mode", ["0750", 750, "0700", None], ids=str)
@pytest.mark.few(2)
def test_owner_and_mode(public: App, for_all: str, mode: Any) -> None:
    import grp
    import pwd

    user, group = pwd.getpwuid(NOBODY).pw_name, grp.getgrgid(1).gr_name
    more = {} if mode is None else {"mode": mode, "group": group}
    smoke = f'test "$(id -un)" = {user} && test -r {WHICH}'
    more["source"] = for_all
    owner = user if "group" in more else NOBODY
    public.thrice("managed", "1", user=owner, smoke=smoke, **more)
    expected = 1 if "group" in more else pwd.getpwuid(NOBODY).pw_gid
    for path, facts in environments.digest(public.path("1")).items():
        if path != ".release.json":
            assert facts.owner == (NOBODY, expected), path
    wanted = 0o755 if mode is None else int(str(mode), 8)
    assert os.stat(public.path("1")).st_mode & 0o7777 == wanted
    assert os.stat(public.root).st_uid == 0


@needs_root
def test_a_smoke_test_as_another_user(public: App, for_all: str) -> None:
    """The release is the minion's; that user only reads it, and sees nothing of the minion's."""
    smoke = [
        f'test "$(id -u) $HOME" = "{NOBODY} $(getent passwd {NOBODY} | cut -d: -f6)"',
        f"python -c 'import json' && grep -q all {WHICH} && ! touch new && ! ls ..",
    ]
    public.refused(
        *("managed", "1", "smoke test `id -u | grep -qx 0` failed"),
        announced=True,
        smoke="id -u | grep -qx 0",
        smoke_user="nobody",
        source=for_all,
    )
    public.thrice("managed", "1", smoke=smoke, smoke_user="nobody", source=for_all)
    assert {facts.owner[0] for facts in environments.digest(public.path("1")).values()} == {0}


@needs_root
def test_a_root_that_others_could_redirect(public: App) -> None:
    os.mkdir(public.root)
    os.chown(public.root, NOBODY, NOBODY)
    public.refused(
        "managed", "1", "chown root", announced=True, source="salt://app/1.tar", user="nobody"
    )


@contextmanager
def busy(root: str) -> Iterator[None]:
    """Another run in the root."""
    os.makedirs(f"{root}/.releases", exist_ok=True)
    with open(f"{root}/.releases/lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_another_run_in_the_root(two: App) -> None:
    with busy(two.root):
        begin = time.monotonic()
        two.refused(
            *("managed", "3", "held it all of 0.2 seconds"),
            announced=True,
            source="salt://app/3.tar",
            wait=0.2,
        )
        two.in_vain("managed", "1", source="salt://app/1.tar")
        two.in_vain("active", "current", target="2")
        assert time.monotonic() - begin < 60
    two.thrice("managed", "3", source="salt://app/3.tar")


def test_problems_are_warnings(app: App, tmp_path: Path) -> None:
    made = minions.pack(tmp_path / "1.tar", "1")
    tree = tmp_path / "tree"
    tree.mkdir()
    environments.run("tar", "xf", str(made), "-C", str(tree))
    for number in range(12):
        (tree / f"bin/dead{number}").write_text("#!/opt/gone/bin/python\n")
        (tree / f"bin/dead{number}").chmod(0o755)
    environments.run("tar", "cf", str(made), "-C", str(tree), ".")
    answer = app.single("managed", "1", source=str(made))
    assert answer["result"] is True
    warnings = answer["warnings"]
    assert len(warnings) == 11
    assert warnings[-1] == "and 2 more"
    assert any("/opt/gone/bin/python is not there" in line for line in warnings)


# --- managed: signatures --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keys() -> Iterator[Keys]:
    """Keys of gpg."""
    with signing.keys() as made:
        yield made


def salt_version() -> int:
    """The first number of Salt's version."""
    import salt.version

    return int(str(salt.version.__version__).split(".")[0])


@pytest.mark.parametrize("kind", ["path", "salt"])
@pytest.mark.few(1)
def test_a_signature(app: App, keys: Keys, kind: str) -> None:
    if salt_version() < 3007:
        pytest.skip("gpg.verify of Salt 3006 knows no key that is trusted ultimately")
    signature = keys.sign(Path(app.archive("1")))
    where = f"salt://app/{signature.name}" if kind == "salt" else str(signature)
    source = places(SOURCES[kind], app)
    app.thrice("managed", "1", source=source, signature=where, gnupghome=keys.home)
    more = {"source": "salt://app/2.tar", "gnupghome": keys.home}
    app.refused("managed", "2", "not accepted", announced=True, signature=where, **more)
    app.refused(
        "managed", "2", "signature", announced=True, signature="salt://app/nowhere.asc", **more
    )
    app.refused("managed", "2", "signature", announced=True, signature="/nowhere/1.tar.asc", **more)
    app.refused(
        *("managed", "2", "no-such"), announced=True, signature=where, sig_backend="no-such", **more
    )


def test_whose_signature(app: App, keys: Keys) -> None:
    more = {
        "source": app.archive("1"),
        "signature": str(keys.sign(Path(app.archive("1")))),
        "gnupghome": keys.home,
    }
    right, wrong = keys.fingerprints
    for condition in ("signed_by_any", "signed_by_all"):
        app.refused("managed", "1", "signature", announced=True, **more, **{condition: [wrong]})
    if salt_version() < 3007:
        app.refused("managed", "1", "3007", announced=True, **more, signed_by_any=[right])
        return
    app.thrice("managed", "1", **more, signed_by_any=[wrong, right])


def test_a_signed_file_of_hashes(app: App, keys: Keys) -> None:
    file = app.minion.root / "app" / "SIGNED"
    file.write_text(f"{hashed(app.archive('1'))}  1.tar\n{hashed(app.archive('2'))}  2.tar\n")
    keys.sign(file)
    more = {
        "source": f"{app.site.url}/1.tar",
        "source_hash": "salt://app/SIGNED",
        "source_hash_sig": "salt://app/SIGNED.asc0",
        "gnupghome": keys.home,
    }
    if salt_version() < 3007:
        app.refused("managed", "1", "3007", announced=True, **more)
        return
    right, wrong = keys.fingerprints
    app.refused("managed", "1", "signature", announced=True, **more, signed_by_any=wrong)
    app.thrice("managed", "1", **more, signed_by_any=right)


# --- active ---------------------------------------------------------------------------------------


def test_the_first_link_and_a_switch(app: App) -> None:
    for name in NAMES:
        app.call("unpack", app.archive(name), app.path(name))
    before = None
    for name, target in (("1", app.path("1")), ("2", "2"), ("3", app.path("3")), ("1", "1")):
        said, done = app.thrice("active", "current", target=target)
        assert done["changes"] == {"release": {"old": before, "new": name}}
        assert said["comment"] == f"{app.path('current')} would point to {app.path(name)}."
        assert done["comment"] == f"{app.path('current')} now points to {app.path(name)}."
        assert app.current() == before or app.current() == name
        assert app.current() == name
        before = name


def test_another_link(two: App) -> None:
    two.thrice("active", "next", target="1")
    assert (os.readlink(two.path("next")), two.current()) == ("1", "2")


def test_a_target_that_is_to_be_deployed_first(app: App) -> None:
    said = app.single("active", "current", target="1", test=True)
    assert said["result"] is None
    assert said["changes"] == {"release": {"old": None, "new": "1"}}
    assert said["comment"] == (
        f"{app.path('current')} would point to {app.path('1')}, once that is deployed."
    )
    done = app.single("active", "current", target="1")
    assert (done["result"], done["changes"]) == (False, {})
    assert "deploy it first" in done["comment"]
    assert app.current() is None


def test_what_is_not_activated(two: App) -> None:
    two.call("mark_bad", two.path("1"), "leaks memory")
    comment = two.refused("active", "current", "is marked bad .leaks memory.", target="1")
    assert "unmark" in comment
    os.mkdir(two.path("stray"))
    two.refused("active", "current", "is no release", target="stray")
    two.call("unmark_bad", two.path("1"))
    broken(two.path("1"))
    two.refused("active", "current", "cannot run: .* reinitialize", target="1")
    assert two.current() == "2"


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("current", None, "target is missing"),
        ("current", "", "target is missing"),
        (".hidden", "1", "no symlink can be called"),
        ("elsewhere/current", "ROOT/1", "must be beside its releases"),
        ("1", "2", "is a directory and no symlink"),
    ],
)
def test_a_bad_link(two: App, name: str, target: str | None, words: str) -> None:
    os.mkdir(two.path("elsewhere"))
    target = target and target.replace("ROOT", two.root)
    two.refused("active", name, f"(?i){words}", target=target)


@pytest.mark.parametrize("name", ["current", "srv/app/current"])
def test_a_relative_link(two: App, name: str) -> None:
    for test in (True, False):
        answer = two.minion.single("active", name, target=two.path("1"), test=test)
        assert answer["result"] is False
        assert answer["comment"] == f"The link must be an absolute path: {name}."


def test_a_slash_at_the_end(app: App) -> None:
    """Of a directory's name, as a shell completes it."""
    for name in ("1", "2"):
        app.thrice("managed", f"{name}/", source=app.archive(name))
        app.thrice("active", "current/", target=name)
        app.in_vain("active", "current", target=f"{app.path(name)}/")
    assert app.current() == "2"
    answer = app.single("healthy", "current/", checks=f"grep -qx 1 {WHICH}", **QUICK)
    assert answer["changes"] == {"release": {"old": "2", "new": "1"}}, answer
    app.thrice("absent", "2/")
    app.in_vain("pruned", "")
    assert app.minion.single("pruned", f"{app.root}/", keep=1)["result"] is True


@pytest.mark.parametrize("kind", ["directory", "file"])
@pytest.mark.parametrize("target", ["1", "missing"])
def test_something_else_in_the_place_of_the_link(app: App, kind: str, target: str) -> None:
    app.call("unpack", app.archive("1"), app.path("1"))
    link = Path(app.path("current"))
    if kind == "directory":
        link.mkdir()
        (link / "precious").write_text("kept\n")
    else:
        link.write_text("kept\n")
    app.refused("active", "current", f"is a {kind} and no symlink", target=target)


@pytest.mark.parametrize("how", ["relative", "absolute", "dangling", "out of the root"])
@pytest.mark.few(2)
def test_a_link_of_another_tool(app: App, how: str) -> None:
    for name in ("1", "2"):
        app.call("unpack", app.archive(name), app.path(name))
    old = {
        "relative": "1",
        "absolute": app.path("1"),
        "dangling": "gone",
        "out of the root": str(app.minion.root),
    }[how]
    os.symlink(old, app.path("current"))
    _, done = app.thrice("active", "current", target="2")
    assert app.current() == "2"
    known = how in ("relative", "absolute")
    if known:
        assert done["changes"]["release"]["old"] == "1"
        app.call("rollback", app.root)
        assert app.current() == "1"


@pytest.mark.parametrize("how", ["relative", "absolute"])
def test_a_link_that_another_tool_has_switched(two: App, how: str) -> None:
    os.unlink(two.path("current"))
    os.symlink("1" if how == "relative" else two.path("1"), two.path("current"))
    answer = two.single("active", "current", target="1")
    assert (answer["result"], answer["changes"]) == (True, {})
    two.in_vain("active", "current", target="1")
    assert two.call("rollback", two.root)["release"] == "2"


# --- rolled_back ----------------------------------------------------------------------------------


def went_back(app: App, **arguments: Any) -> dict[str, Any]:
    """Go back as a test, for real, and once more; what was done."""
    before = app.world()
    said = app.single("rolled_back", "current", test=True, **arguments)
    assert said["result"] is None
    new = said["changes"]["release"]["new"]
    assert said["comment"] == f"{app.path('current')} would point to {new} again."
    assert app.world() == before
    done = app.single("rolled_back", "current", **arguments)
    assert (done["result"], done["changes"]) == (True, said["changes"])
    kept = app.kept()
    again = app.single("rolled_back", "current", **arguments)
    assert (again["result"], again["changes"], app.kept()) == (True, {}, kept)
    return done


def test_going_back_from_a_named_release(two: App) -> None:
    done = went_back(two, leaving="2", reason="prices are wrong")
    assert done["comment"] == f"{two.path('current')} points to 1 again. 2 is marked bad."
    assert done["changes"] == {"release": {"old": "2", "new": "1"}}
    assert two.call("releases", two.root)["2"]["bad"] == "prices are wrong"


def test_going_back_to_a_named_release_without_a_mark(two: App) -> None:
    done = went_back(two, to="1", mark=False)
    assert done["comment"] == f"{two.path('current')} points to 1 again."
    went_back(two, to="2", mark=False)
    assert two.current() == "2"


def test_no_previous_release(app: App) -> None:
    app.deploy("1")
    app.refused("rolled_back", "current", "^There is no good release before 1 in ")
    app.refused("rolled_back", "current", "9", to="9")


# --- healthy --------------------------------------------------------------------------------------

QUICK = {"attempts": 2, "interval": 0.01}


def counter(tmp_path: Path) -> tuple[str, Path]:
    """A command that counts its runs, and the file that it counts in."""
    file = tmp_path / "runs"
    file.write_text("")
    return f"echo run >> {file}", file


@pytest.mark.parametrize(
    "checks",
    [
        "omega",
        ["omega", f"grep -qx 2 {WHICH}", 'test "$PWD" = "$VIRTUAL_ENV"'],
        {"cmd": "bin/omega"},
        "SITE/page",
        {"url": "SITE/page"},
        {"url": "SITE/page", "match": "Wel+come"},
        {"url": "SITE/nowhere", "status": 404},
        {"url": "SITE/nowhere", "status": "404", "match": "nothing"},
        ["SITE/page", {"url": "SITE/page", "match": "^second"}, "omega"],
    ],
    ids=str,
)
@pytest.mark.few(4)
def test_a_release_that_is_healthy(two: App, checks: Any) -> None:
    two.site.pages["/page"] = b"Wellcome\nto you\n"
    if isinstance(checks, list) and "match" in str(checks):
        two.site.pages["/page"] = b"second\n"
    checks = json.loads(json.dumps(checks).replace("SITE", two.site.url))
    before = two.world()
    said = two.single("healthy", "current", checks=checks, test=True)
    assert (said["result"], said["changes"]) == (None, {})
    assert said["comment"] == f"What {two.path('current')} points to would be checked."
    assert two.world() == before
    done = two.single("healthy", "current", checks=checks)
    assert (done["result"], done["changes"]) == (True, {}), done
    assert done["comment"] == "2 is healthy."
    tree = environments.digest(two.root)
    for test in (True, False):
        again = two.single("healthy", "current", checks=checks, test=test)
        assert (again["result"], again["changes"]) == (True, {})
    assert environments.digest(two.root) == tree


def test_a_link_that_is_not_the_name(two: App) -> None:
    more = {"link": two.path("current"), "checks": f"grep -qx 1 {WHICH}", **QUICK}
    said = two.minion.single("healthy", "app answers", test=True, **more)
    assert (said["result"], said["name"]) == (None, "app answers")
    done = two.minion.single("healthy", "app answers", **more)
    assert done["changes"] == {"release": {"old": "2", "new": "1"}}, done
    again = two.minion.single("healthy", "app answers", **more)
    assert (again["result"], again["comment"]) == (True, "1 is healthy.")


def test_a_test_runs_no_check(two: App, tmp_path: Path) -> None:
    command, file = counter(tmp_path)
    for _ in range(2):
        two.single("healthy", "current", checks=[command, f"{two.site.url}/page"], test=True)
        assert (file.read_text(), two.site.requests) == ("", [])
    two.single("healthy", "current", checks=[command, f"{two.site.url}/page"])
    assert (file.read_text(), two.site.requests) == ("run\n", ["GET /page"])


def test_a_check_that_succeeds_at_the_third_attempt(two: App, tmp_path: Path) -> None:
    command, file = counter(tmp_path)
    two.site.answers["/page"] = [503, 500, 200]
    checks = [f"{command}; test $(wc -l < {file}) -ge 3", f"{two.site.url}/page"]
    answer = two.single("healthy", "current", checks=checks, attempts=3, interval=0.05)
    assert answer["result"] is True, answer
    assert file.read_text() == "run\n" * 3
    assert len(two.site.requests) == 3
    assert two.current() == "2"


FAILING = {
    "command": ("exit 3", r"`exit 3` fails \(exit code 3\)"),
    "what it says": ("echo no settings >&2; exit 1", r"fails \(exit code 1: no settings\)"),
    "no such command": ("no-such-command", "no-such-command"),
    "status": ("SITE/nowhere", "SITE/nowhere answers with 404"),
    "another status": ({"url": "SITE/page", "status": 301}, "SITE/page answers with 200"),
    "match": ({"url": "SITE/page", "match": "Wel+come"}, "answers without 'Wel.come'"),
    "no server": ("http://127.0.0.1:1/", r"http://127.0.0.1:1/ does not answer \(.+\)"),
    "the second": (["omega", "exit 5"], "`exit 5` fails"),
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_release_that_is_not(two: App, kind: str) -> None:
    checks, words = json.loads(json.dumps(FAILING[kind]).replace("SITE", two.site.url))
    answer = two.single("healthy", "current", checks=checks, **QUICK)
    assert answer["result"] is False
    assert answer["changes"] == {"release": {"old": "2", "new": "1"}}
    comment = answer["comment"]
    assert comment.startswith("2 is not healthy: ")
    assert re.search(words, comment), comment
    assert f"It is marked bad, and {two.path('current')} points to 1 again. " in comment
    assert two.current() == "1"
    assert re.search(words, two.call("releases", two.root)["2"]["bad"])
    assert "rolled back 1" in two.call("history", two.root)[-1]


def test_a_check_that_takes_too_long(two: App) -> None:
    two.site.delay = 2
    begin = time.monotonic()
    checks = [{"url": f"{two.site.url}/page"}]
    answer = two.single("healthy", "current", checks=checks, timeout=0.3, attempts=1)
    two.site.delay = 0
    assert "does not answer" in answer["comment"], answer
    two.call("unmark_bad", two.path("2"))
    two.call("activate", two.path("2"))
    answer = two.single("healthy", "current", checks="sleep 120", timeout=0.3, attempts=1)
    words = "`sleep 120` fails (it took longer than 0.3 seconds)"
    assert words in answer["comment"], answer
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("page", ["grün".encode("latin-1"), bytes(range(256))], ids=["text", "any"])
def test_a_page_that_is_no_utf_8(two: App, page: bytes) -> None:
    two.site.pages["/page"] = page
    url = f"{two.site.url}/page"
    answer = two.single("healthy", "current", checks=[url, {"url": url, "status": 200}], **QUICK)
    assert answer["result"] is True, answer
    two.site.answers["/page"] = [500]
    two.call("activate", two.path("1"))
    answer = two.single("healthy", "current", checks=url, **QUICK)
    assert "answers with 500" in answer["comment"], answer
    assert two.current() == "2"


def test_the_release_before_passes_or_not(two: App) -> None:
    answer = two.single("healthy", "current", checks=f"grep -qx 1 {WHICH}", **QUICK)
    assert answer["comment"].endswith(" points to 1 again. 1 is healthy."), answer
    two.call("unmark_bad", two.path("2"))
    two.call("activate", two.path("2"))
    answer = two.single("healthy", "current", checks="exit 7", **QUICK)
    assert answer["comment"].endswith(" Now `exit 7` fails (exit code 7)."), answer


WATCHING = """
    restart app:
      cmd.run:
        - name: echo restarted $(readlink ROOT/current) >> LOG

    app answers:
      virtualenv_relocated.healthy:
        - name: ROOT/current
        - checks: echo checked >> LOG; grep -qx WANTED etc/which
        - attempts: 2
        - interval: 0.01
        - watch:
          - WATCH
"""


def watching(log: Path, wanted: str, watch: str) -> str:
    """An SLS of a command and of the check that watches it."""
    log.write_text("")
    text = WATCHING.replace("WANTED", wanted).replace("WATCH", watch)
    return text.replace("LOG", str(log))


@pytest.mark.parametrize(
    "watch",
    [
        "cmd: restart app",
        "cmd: echo restarted $(readlink ROOT/current) >> LOG",
        "restart app",
        "cmd: restart*",
    ],
    ids=["id", "name", "id alone", "pattern"],
)
def test_what_is_watched_is_restarted(two: App, tmp_path: Path, watch: str) -> None:
    log = tmp_path / "log"
    answers = two.apply(watching(log, "1", watch))
    answer = answers["app answers"]
    assert answer["result"] is False
    command = f"echo restarted $(readlink {two.root}/current) >> {log}"
    assert answer["changes"] == {
        "release": {"old": "2", "new": "1"},
        "restarted": [f"cmd {command}"],
    }
    assert answer["comment"].endswith("1 is healthy.")
    assert log.read_text().splitlines() == [
        *("restarted 2", "checked", "checked", "restarted 1", "checked"),
    ]


@pytest.mark.parametrize("requisite", ["watch_in", "watch_any"])
def test_other_ways_to_watch(two: App, tmp_path: Path, requisite: str) -> None:
    log = tmp_path / "log"
    text = watching(log, "1", "cmd: restart app")
    if requisite == "watch_in":
        text = text[: text.index("        - watch:")]
        line = ">> " + str(log)
        more = f"{line}\n        - watch_in:\n          - virtualenv_relocated: app answers\n"
        text = text.replace(f"{line}\n", more, 1)
    else:
        text = text.replace("watch:", f"{requisite}:")
    answer = two.apply(text)["app answers"]
    assert answer["result"] is False
    assert two.current() == "1"
    assert "restarted 1" in log.read_text().splitlines()


@pytest.mark.parametrize("own", ["virtualenv_relocated: app is active", "sls: services"])
def test_a_state_of_ours_is_no_service(two: App, tmp_path: Path, own: str) -> None:
    """To restart it after a rollback would be to activate the bad release again."""
    log = tmp_path / "log"
    service, check = watching(log, "1", own).split("    app answers:")
    sls = f"""
    app is active:
      virtualenv_relocated.active:
        - name: ROOT/current
        - target: 2
    {service}
    """
    services = two.minion.root / "services.sls"
    services.write_text(textwrap.dedent(sls).replace("ROOT", two.root))
    answer = two.apply(f"    include:\n      - services\n\n    app answers:{check}")["app answers"]
    assert two.current() == "1"
    assert answer["changes"]["release"] == {"old": "2", "new": "1"}
    restarted = "".join(answer["changes"].get("restarted", []))
    assert "virtualenv_relocated" not in restarted
    assert ("restarted 1" in log.read_text()) is own.startswith("sls")


def test_a_healthy_one_is_checked_once(two: App, tmp_path: Path) -> None:
    log = tmp_path / "log"
    answers = two.apply(watching(log, "2", "cmd: restart app"))
    assert answers["app answers"]["result"] is True
    assert log.read_text().splitlines() == ["restarted 2", "checked"]


def test_a_restart_that_fails_is_reported(two: App, tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = watching(log, "1", "cmd: restart app")
    text = text.replace(f">> {log}\n", f">> {log}; test $(readlink ROOT/current) = 2\n", 1)
    answer = two.apply(text)["app answers"]
    assert answer["result"] is False
    (restarted,) = answer["changes"]["restarted"]
    assert "(failed: " in restarted


DEPLOYING = """
    ROOT/2:
      virtualenv_relocated.managed:
        - source: salt://app/2.tar

    app is active:
      virtualenv_relocated.active:
        - name: ROOT/current
        - target: 2
        - require:
          - virtualenv_relocated: ROOT/2

    app answers:
      virtualenv_relocated.healthy:
        - name: ROOT/current
        - checks: CHECK
        - attempts: 1
        - require:
          - virtualenv_relocated: app is active
"""


def test_a_bad_release_does_not_come_back(app: App) -> None:
    app.deploy("1")
    bad = DEPLOYING.replace("CHECK", "exit 1")
    said = app.apply(bad, test=True)
    assert [answer["result"] for answer in said.values()] == [None, None, None]
    first = app.apply(bad)
    assert [answer["result"] for answer in first.values()] == [True, True, False]
    assert app.current() == "1"
    before = app.kept()
    for test in (True, False):
        second = app.apply(bad, test=test)
        link = second["app is active"]
        assert link["result"] is False
        assert "is marked bad" in link["comment"]
        assert "unmark" in link["comment"]
        assert second["app answers"]["result"] is False
        assert app.kept() == before
    app.call("unmark_bad", app.path("2"))
    third = app.apply(DEPLOYING.replace("CHECK", "omega"))
    assert [answer["result"] for answer in third.values()] == [True, True, True]
    assert app.current() == "2"


def test_a_check_leaves_the_release_alone(two: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees nothing of the minion's variables, and writes no bytecode."""
    monkeypatch.setenv("SECRET_TOKEN", "x")
    Path(two.path("2/etc/fresh.py")).write_text("")
    checks = ["cd etc && python -c 'import fresh'", 'test -z "$SECRET_TOKEN"']
    answer = two.single("healthy", "current", checks=checks, **QUICK)
    assert answer["result"] is True, answer
    assert not os.path.exists(two.path("2/etc/__pycache__"))


def test_a_release_that_was_healthy_stays(two: App) -> None:
    assert two.single("healthy", "current", checks="omega")["result"] is True
    for test, result in ((True, True), (False, False)):
        answer = two.single("healthy", "current", checks="exit 1", test=test, **QUICK)
        assert (answer["result"], answer["changes"]) == (result, {})
    assert answer["comment"].endswith("It stays, as it was healthy before.")
    assert two.current() == "2"
    two.call("activate", two.path("1"))
    two.call("activate", two.path("2"))
    assert two.single("healthy", "current", checks="exit 1", **QUICK)["changes"]


def test_the_first_release_of_all_stays(app: App) -> None:
    app.deploy("1")
    answer = app.single("healthy", "current", checks="exit 1", **QUICK)
    assert (answer["result"], answer["changes"]) == (False, {})
    assert "It stays" in answer["comment"]
    assert app.current() == "1"
    assert "bad" not in app.call("releases", app.root)["1"]


def test_without_a_rollback(two: App) -> None:
    answer = two.single("healthy", "current", checks="exit 1", rollback=False, **QUICK)
    assert (answer["result"], answer["changes"]) == (False, {})
    assert answer["comment"].endswith("It stays, as rollback is off.")
    assert two.current() == "2"
    assert "bad" not in two.call("releases", two.root)["2"]


def test_no_release_to_check(app: App) -> None:
    os.makedirs(app.root)
    assert app.single("healthy", "current", checks="omega", test=True)["result"] is None
    answer = app.single("healthy", "current", checks="omega")
    assert answer["result"] is False
    assert "points to no release" in answer["comment"]


@needs_root
def test_the_user_of_a_check(public: App) -> None:
    public.deploy("1")
    root, nobody = ('test "$(id -un)" = root', 'test "$(id -un)" = nobody')
    checks = [nobody, {"cmd": root, "user": "root"}]
    answer = public.single("healthy", "current", checks=checks, user="nobody", **QUICK)
    assert answer["result"] is True, answer
    answer = public.single("healthy", "current", checks=root, user="no-such-user", **QUICK)
    assert answer["result"] is False
    assert "no-such-user" in answer["comment"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "checks (is|are) missing: give at least a URL or a command"),
        ({"checks": []}, "checks (is|are) missing"),
        ({"checks": ""}, "check"),
        ({"checks": 5}, "check"),
        ({"checks": [5]}, "check"),
        ({"checks": [None]}, "check"),
        ({"checks": [["omega"]]}, "check"),
        ({"checks": {"cmd": 5}}, "a check is a URL, a command, or one of"),
        ({"checks": {"url": "http://127.0.0.1/", "code": 200}}, "a check is .*code"),
        ({"checks": {"cmd": "omega", "match": "x"}}, "a check is .*match"),
        ({"checks": {"cmd": "omega", "url": "http://127.0.0.1/"}}, "a check is"),
        ({"checks": {"status": 200}}, "a check is"),
        ({"checks": {"url": "http://127.0.0.1:1/", "status": "teapot"}}, "status|check"),
        ({"checks": {"url": "http://127.0.0.1:1/", "match": "("}}, "match|check"),
        ({"checks": {"url": "SITE/page", "match": 5}}, "match|check"),
        ({"checks": "omega", "attempts": 0}, "attempts must be a number of at least 1: 0"),
        ({"checks": "omega", "attempts": "many"}, "attempts must be a number"),
        ({"checks": "omega", "attempts": True}, "attempts must be a number"),
        ({"checks": "omega", "interval": -1}, "interval must be a number of at least 0: -1"),
        ({"checks": "omega", "interval": "1s"}, "interval must be a number"),
        ({"checks": "omega", "timeout": 0}, "timeout must be a number"),
        ({"checks": "omega", "timeout": None}, "timeout must be a number"),
        ({"checks": "omega", "link": 5}, "the link must be an absolute path: 5"),
        ({"checks": "omega", "link": "app/current"}, "the link must be an absolute path"),
    ],
    ids=str,
)
@pytest.mark.few(8)
def test_bad_arguments_of_healthy(two: App, arguments: dict[str, Any], words: str) -> None:
    arguments = json.loads(json.dumps(arguments).replace("SITE", two.site.url))
    two.refused("healthy", "current", f"(?i){words}", **arguments)
    assert two.current() == "2"


# --- pruned and absent ----------------------------------------------------------------------------


@contextmanager
def running(release: str) -> Iterator[int]:
    """A process of a release; its number."""
    command = [f"{release}/bin/python", "-c", "print(1, flush=True); import time; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def many(app: App, *names: str) -> None:
    """Deploy and activate many releases from one archive, each in a year of its own."""
    year = 2001 + len(there(app))
    for number, name in enumerate(names):
        with minions.in_year(year + number):
            app.call("unpack", app.archive("1"), app.path(name))
            app.call("activate", app.path(name))


def there(app: App) -> list[str]:
    """The names of the releases that are there."""
    return sorted(app.call("releases", app.root))


def test_old_releases_are_removed(app: App) -> None:
    many(app, "a", "b", "c", "d", "e")
    os.mkdir(app.path("stray"))
    app.call("pin", app.path("a"))
    with running(app.path("b")) as pid:
        assert app.call("prune", app.root, keep=1, test=True)["kept"]["b"] == (
            f"used by process {pid}"
        )
        said, done = app.thrice("pruned", "", keep=1)
    assert (said["changes"], said["comment"]) == ({"removed": ["c"]}, "1 release would be removed.")
    assert (done["changes"], done["comment"]) == ({"removed": ["c"]}, "1 release removed.")
    assert there(app) == ["a", "b", "d", "e"]
    assert os.path.isdir(app.path("stray"))
    app.call("unpin", app.path("a"))
    said, done = app.thrice("pruned", "", keep=1)
    assert done["comment"] == "2 releases removed."
    assert there(app) == ["d", "e"]
    assert app.output(f"{app.path('current')}/bin/omega").splitlines()[1] == app.path("e")


@pytest.mark.slow
def test_the_default_keeps_five(app: App) -> None:
    many(app, "a", "b", "c", "d", "e")
    app.in_vain("pruned", "")
    many(app, "f")
    app.thrice("pruned", "")
    assert len(there(app)) == 5
    assert {"e", "f"} <= set(there(app))


def test_nothing_to_prune(app: App) -> None:
    answer = app.single("pruned", "")
    assert (answer["result"], answer["comment"]) == (True, "There is nothing to prune.")
    assert not os.path.exists(app.root)


@pytest.mark.parametrize("keep", [0, -1, "many", None, True, 2.5, [3]], ids=str)
def test_a_bad_number_to_keep(two: App, keep: Any) -> None:
    two.refused("pruned", "", "[Kk]eep must be a whole number of at least 1", keep=keep)


def test_a_release_that_cannot_be_removed(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    many(app, "a", "b", "c", "d")
    rename = os.rename

    def failing(source: Any, *arguments: Any, **options: Any) -> None:
        if source == "a":
            raise PermissionError(1, "Operation not permitted")
        rename(source, *arguments, **options)

    monkeypatch.setattr(os, "rename", failing)
    answer = app.single("pruned", "", keep=1)
    assert (answer["result"], answer["changes"]) == (False, {"removed": ["b"]})
    assert "(a: operation not permitted)" in answer["comment"]
    assert there(app) == ["a", "c", "d"]


@pytest.mark.parametrize("function", ["pruned", "absent", "managed", "healthy"])
def test_a_relative_path(two: App, function: str) -> None:
    for test in (True, False):
        more = {"managed": {"source": two.archive("1")}, "healthy": {"checks": "omega"}}
        answer = two.minion.single(function, "srv/app", test=test, **more.get(function, {}))
        assert answer["result"] is False
        assert re.search("must be (an )?absolute", answer["comment"]), answer


def test_a_release_is_removed(two: App) -> None:
    _, done = two.thrice("absent", "1")
    assert done["changes"] == {"release": {"old": two.path("1"), "new": None}}
    assert done["comment"] == f"{two.path('1')} was removed."
    assert there(two) == ["2"]


def test_a_release_that_is_not_there(app: App) -> None:
    app.in_vain("absent", "1")
    assert not os.path.exists(app.root)


def test_what_must_stay(two: App) -> None:
    two.refused("absent", "2", "is active")
    two.call("pin", two.path("1"))
    two.refused("absent", "1", "pinned")
    two.call("unpin", two.path("1"))
    with running(two.path("1")) as pid:
        two.refused("absent", "1", f"process {pid}")
    os.mkdir(two.path("stray"))
    two.refused("absent", "stray", "is no release")
    two.refused("absent", "current", "No release can be called current")


# --- together -------------------------------------------------------------------------------------


def example(app: App, log: Path) -> str:
    """The SLS of the module's own docstring, with what there is on this machine put in."""
    text = (minions.CHECKOUT / "_states" / "virtualenv_relocated.py").read_text()
    text = textwrap.dedent(text.split(".. code-block:: yaml")[1].split('"""')[0])
    for old, new in (
        ("4f2a9c1", "1"),
        ("1.tar.gz", "1.tar"),
        ("/srv/app", app.root),
        ("smoke: django-admin check", "smoke: omega"),
        ("service.running:\n", f"cmd.wait:\n    - name: echo restarted >> {log}\n"),
        ("- service: app", "- cmd: app"),
        ("http://127.0.0.1:8000/health", f"{app.site.url}/page"),
        ("    - checks:", "    - attempts: 2\n    - interval: 0.01\n    - checks:"),
    ):
        assert old in text, old
        text = text.replace(old, new)
    return text


def test_the_example_of_the_docstring(app: App, tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = example(app, log)
    states = [app.path("1"), app.path("current"), "app", "app answers", app.root]
    before = app.world()
    said = app.apply(text, test=True)
    assert list(said) == states
    results = [said[one]["result"] for one in states]
    assert results[:2] == [None, None]
    assert results[3:] == [None, True]
    assert app.world() == before
    done = app.apply(text)
    assert [done[one]["result"] for one in states] == [True] * 5, done
    assert [bool(done[one]["changes"]) for one in states] == [True, True, True, False, False]
    assert log.read_text() == "restarted\n"
    tree = environments.digest(app.root)
    for test in (True, False):
        again = app.apply(text, test=test)
        assert [again[one]["result"] for one in states] == [True] * 5, again
        assert not any(again[one]["changes"] for one in states)
    assert environments.digest(app.root) == tree
    assert log.read_text() == "restarted\n"


def test_the_next_release_of_the_example_fails(app: App, tmp_path: Path) -> None:
    log = tmp_path / "log"
    text = example(app, log)
    assert all(answer["result"] for answer in app.apply(text).values())
    app.site.answers["/page"] = [500, 500, 200]
    answers = app.apply(text.replace(app.path("1"), app.path("2")).replace("/1.tar", "/2.tar"))
    results = {name: answer["result"] for name, answer in answers.items()}
    assert list(results.values()) == [True, True, True, False, False], answers
    assert answers["app answers"]["changes"]["release"] == {"old": "2", "new": "1"}
    assert answers["app answers"]["comment"].endswith("1 is healthy.")
    assert log.read_text() == "restarted\n" * 3
    assert app.current() == "1"


@pytest.mark.parametrize("requisite", ["watch", "listen"])
@pytest.mark.parametrize("fails", [False, True], ids=["well", "failing"])
@pytest.mark.few(2)
def test_each_state_may_watch(two: App, requisite: str, fails: bool) -> None:
    """What is watched has changed: that neither breaks a state nor hides that it failed."""
    wrong = {"managed": "0.5", "active": "4", "healthy": "exit 1", "pruned": "0", "absent": "2"}
    right = {"managed": "0.5", "active": "2", "healthy": "omega", "pruned": "3", "absent": "4"}
    value = wrong if fails else right
    sls = f"""
    change:
      test.succeed_with_changes: []
    managed:
      virtualenv_relocated.managed:
        - name: ROOT/1
        - source: {"relative.tar" if fails else "salt://app/1.tar"}
    active:
      virtualenv_relocated.active:
        - name: ROOT/current
        - target: {value["active"]}
    healthy:
      virtualenv_relocated.healthy:
        - name: ROOT/current
        - checks: {value["healthy"]}
        - attempts: 1
        - rollback: False
    pruned:
      virtualenv_relocated.pruned:
        - name: ROOT
        - keep: {value["pruned"]}
    absent:
      virtualenv_relocated.absent:
        - name: ROOT/{value["absent"]}
    """
    text = textwrap.dedent(sls)
    text = re.sub(
        r"(?m)^(  virtualenv_relocated.*)$", rf"\1\n    - {requisite}:\n      - test: change", text
    )
    for test in (True, False):
        answers = two.apply(text, test=test)
        for name in wrong:
            answer = answers[name]
            expected = not fails
            if test and name in ("healthy", "active"):
                assert answer["result"] in (None, expected), answer
            else:
                assert answer["result"] is expected, answer
    for tag, answer in answers.items():
        assert "Traceback" not in str(answer), tag


def test_a_minion_that_only_tests(two: App, minion: Masterless) -> None:
    before = two.world()
    minion.functions.opts["test"] = True
    try:
        for function, name, more in (
            ("active", "current", {"target": "1"}),
            ("managed", "3", {"source": "salt://app/3.tar"}),
            ("absent", "1", {}),
        ):
            answers = minion.functions["state.single"](
                f"virtualenv_relocated.{function}", two.path(name), **more
            )
            (answer,) = answers.values()
            assert answer["result"] is None
    finally:
        minion.functions.opts["test"] = False
    assert two.world() == before


@pytest.mark.slow
def test_every_state_has_an_example(minion: Masterless) -> None:
    names = minion.functions["sys.list_state_functions"]("virtualenv_relocated")
    states = {"managed", "migrated", "active", "rolled_back", "healthy", "pruned", "absent"}
    states |= {"packed", "python_packed", "reinitialized", "others_reinitialized"}
    assert {name.rpartition(".")[2] for name in names} == {*states, "mod_watch"}
    documented = minion.functions["sys.state_doc"]("virtualenv_relocated")
    source = (minion.root / "_states" / "virtualenv_relocated.py").read_text()
    for name in states:
        assert f"virtualenv_relocated.{name}" in documented[f"virtualenv_relocated.{name}"]
        (function,) = (
            node
            for node in ast.parse(source).body
            if isinstance(node, ast.FunctionDef) and node.name == name
        )
        text = ast.get_docstring(function) or ""
        assert ".. code-block:: yaml" in text, name
        for argument in function.args.args:
            assert re.search(rf"(?m)^(.*, )?{argument.arg}(,|$)", text), (name, argument.arg)


def test_what_salt_call_prints(two: App, minion: Masterless, tmp_path: Path) -> None:
    """The whole way: the command, its output, its exit code."""
    (tmp_path / "etc").mkdir()
    options = {key: minion.opts[key] for key in minions.masterless(tmp_path, tmp_path)}
    (tmp_path / "etc" / "minion").write_text(json.dumps(options))
    command = Path(sys.executable).with_name("salt-call")
    for target, code, words in (("1", 0, "now points to"), ("4", 1, "deploy it first")):
        done = subprocess.run(
            [
                *(command, "--local", "--retcode-passthrough", "-c", tmp_path / "etc"),
                *("state.single", "virtualenv_relocated.active", two.path("current")),
                f"target={target}",
            ],
            capture_output=True,
            text=True,
        )
        said = done.stdout + done.stderr
        assert (done.returncode > 0) == (code > 0), said
        assert words in said
        assert "Traceback" not in said
    line = two.call("history", two.root)[-1]
    assert re.search(r"activated 1 .*job \d{20}", line), line

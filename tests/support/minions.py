"""Salt for the tests: a file root of this checkout, a masterless minion, archives, a web server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support import steps

CHECKOUT = Path(__file__).resolve().parents[2]
KINDS = ("utils", "modules", "states")
"""What of the checkout is synced to a minion."""
NOT_A_VIRTUALENV = "is not a virtualenv"


def file_root(directory: Path) -> Path:
    """A file root of one's own with the modules, states and the core, to be edited at will."""
    for kind in ("_modules", "_states"):
        shutil.copytree(CHECKOUT / kind, directory / kind, ignore=_no_bytecode)
    core = directory / "_utils" / "relocate_core"
    shutil.copytree(CHECKOUT / "relocate_core", core, ignore=_no_bytecode)
    return directory


def say_otherwise(core: Path, words: str) -> None:
    """Give a core another way to say that a directory is no virtualenv, to tell versions apart."""
    errors = core / "errors.py"
    text = errors.read_text()
    assert NOT_A_VIRTUALENV in text
    errors.write_text(text.replace(NOT_A_VIRTUALENV, words))


def masterless(directory: Path, root: Path, **more: Any) -> dict[str, Any]:
    """A masterless minion's configuration, with all that it writes below `directory`."""
    return {
        "id": "masterless",
        "file_client": "local",
        "file_roots": {"base": [str(root)]},
        "root_dir": str(directory),
        "cachedir": str(directory / "cache"),
        "pki_dir": str(directory / "pki"),
        "sock_dir": str(directory / "run"),
        "log_file": str(directory / "log"),
        "extension_modules": str(directory / "cache" / "extmods"),
        "enable_fqdns_grains": False,
        **more,
    }


def sync(opts: dict[str, Any]) -> dict[str, Any]:
    """Do what `saltutil.sync_all` does for the kinds that are there, as it lists all files for
    each of two dozen; what was carried, by kind.
    """
    import salt.loader

    functions = salt.loader.minion_mods(opts)
    return {kind: functions[f"saltutil.sync_{kind}"](refresh=False) for kind in KINDS}


def _no_bytecode(directory: str, names: list[str]) -> set[str]:
    return {"__pycache__"} & set(names)


# --- a minion ------------------------------------------------------------------------------------


class Masterless:
    """A masterless minion in this process: Salt's own loader, compiler and fileserver.

    Args:
        directory: where all of it is.
        more: options of its configuration.

    Attributes:
        root: its file root, with this checkout's modules, states and core.
        opts: its configuration.
        functions: its execution functions.
    """

    def __init__(self, directory: Path, **more: Any) -> None:
        import salt.config
        import salt.loader

        self.root = file_root(directory / "root")
        self.opts = salt.config.minion_config(None)
        self.opts.update(
            masterless(directory / "minion", self.root, fileserver_list_cache_time=0, **more)
        )
        self.opts["grains"] = salt.loader.grains(self.opts)
        self._count = 0
        self._compilers: dict[bool, Any] = {}
        self.sync()

    def sync(self) -> dict[str, Any]:
        """Carry the file root's modules to the minion; what was carried."""
        import salt.minion

        synced = sync(self.opts)
        self.functions = salt.minion.SMinion(self.opts).functions
        self._compilers.clear()
        return synced

    def single(
        self, function: str, name: str, *, test: bool = False, **arguments: Any
    ) -> dict[str, Any]:
        """What one of our states answers, called as `state.single` does it.

        That makes a new compiler with all its loaders for each call, which takes a hundred times as
        long as the call; here one serves for all.
        """
        import salt.state

        if test not in self._compilers:
            self._compilers[test] = salt.state.State({**self.opts, "test": test})
        compiler = self._compilers[test]
        chunk = {
            "state": "virtualenv_relocated",
            "fun": function,
            "__id__": name,
            "name": name,
            **arguments,
        }
        assert compiler.verify_data(chunk) == []
        answer = compiler.call(chunk)
        orderly(answer)
        return dict(answer)

    def apply(
        self, sls: str, *, test: bool | None = False, **options: Any
    ) -> dict[str, dict[str, Any]]:
        """What the states of an SLS answer to `state.apply`, by ID."""
        self._count += 1
        file = self.root / f"case{self._count}.sls"
        file.write_text(textwrap.dedent(sls))
        return answered(self.functions["state.apply"](file.stem, test=test, **options))

    def fetched(self) -> set[str]:
        """The files in the minion's cache."""
        cache = self.opts["cachedir"]
        return {
            os.path.join(directory, name)
            for part in ("files", "extrn_files", "localfiles")
            for directory, _, names in os.walk(os.path.join(cache, part))
            for name in names
            if not name.endswith(".sls")
        }


def answered(answers: Any) -> dict[str, dict[str, Any]]:
    """States' answers by ID; each of ours has to be as an operator may see it."""
    assert isinstance(answers, dict), answers
    for tag, answer in answers.items():
        if tag.startswith("virtualenv_relocated"):
            orderly(answer)
    by_id = {answer["__id__"]: answer for answer in answers.values()}
    assert len(by_id) == len(answers)
    return by_id


def orderly(answer: dict[str, Any]) -> None:
    """See that a state's answer can be carried by Salt, and its comment is one sentence or two."""
    json.dumps(answer)
    comment = answer["comment"]
    if str(comment).startswith("One or more requisite failed: "):  # Salt's own words
        return
    assert isinstance(comment, str), answer
    assert sentence(comment), comment
    assert comment[-1] in ".!?", comment
    assert isinstance(answer["changes"], dict), answer
    assert answer["result"] in (True, False, None), answer


def sentence(text: str) -> bool:
    """Whether a text is one line without a sign of a bug."""
    signs = ("\n", "Traceback", "nexpected", "object at 0x", "Error(")
    return bool(text) and not any(sign in text for sign in signs)


# --- archives ------------------------------------------------------------------------------------

WHICH = "etc/which"
"""A file of each release that says its name."""


def pack(archive: Path, name: str) -> Path:
    """Pack a small virtualenv whose `WHICH` says `name`; compressed as the file's name says."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    built = archive.with_suffix(".build")
    made = steps.small(built)
    Path(made.path, WHICH).write_text(f"{name}\n")
    kind = archive.suffix[1:]
    plain = archive.with_suffix(".plain") if kind == "zst" else archive
    with tarfile.open(plain, f"w:{kind}" if kind in ("gz", "bz2", "xz") else "w") as file:
        file.add(made.path, arcname=".")
    shutil.rmtree(built)
    if kind == "zst":
        if shutil.which("zstd") is None:
            pytest.skip("zstd is not on this machine")
        subprocess.run(["zstd", "-q", "--rm", str(plain), "-o", str(archive)], check=True)
    return archive


@contextmanager
def in_year(year: int) -> Iterator[None]:
    """Let it be another year for the cores that are loaded: a history tells only seconds apart."""
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if re.fullmatch(r"relocate_core_\w+\.history", name):
                patch.setattr(module, "now", f"{year}-01-01T00:00:00Z".format)
        yield


# --- a web server --------------------------------------------------------------------------------


@dataclass
class Web:
    """A web server on the loopback, in a thread.

    Attributes:
        url: where it is, without a slash at the end.
        pages: what it has, by path.
        answers: the codes that a page is answered with, one after the other; the last one stays.
        delay: how many seconds it takes to answer.
        requests: what it was asked for, like `GET /page`.
    """

    url: str
    pages: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, list[int]] = field(default_factory=dict)
    delay: float = 0
    requests: list[str] = field(default_factory=list)

    def reset(self) -> None:
        """Forget all that a test has set, but the pages."""
        self.answers.clear()
        self.requests.clear()
        self.delay = 0

    def answer(self, path: str) -> tuple[int, bytes]:
        """The code and the page for a path."""
        codes = self.answers.get(path, [200 if path in self.pages else 404])
        return codes.pop(0) if len(codes) > 1 else codes[0], self.pages.get(path, b"nothing\n")


@contextmanager
def web() -> Iterator[Web]:
    """A running web server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(f"{self.command} {self.path}")
            code, page = site.answer(self.path)
            time.sleep(site.delay)
            self.send_response(code)
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(page)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Web(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

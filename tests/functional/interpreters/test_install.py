"""Interpreters that releases bring: unpacked once, shared, and removed when nothing needs them."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from relocate_core import (
    Place,
    PythonBundle,
    RelocateError,
    activate,
    check,
    pack,
    pack_python,
    prune,
    publish,
    reinitialize,
    remove,
    verify_python,
)
from relocate_core.bundles import reader
from relocate_core.interpreters import install, users
from relocate_core.interpreters.missing import VARIABLES, library_in, missing
from relocate_core.interpreters.place import RECORDS
from relocate_core.interpreters.prefix import inspect
from relocate_core.interpreters.relocate import relocate
from relocate_core.system import staging
from tests.functional.interpreters.test_pack import USES, run_without
from tests.support import environments, roots
from tests.support.bundles import reheaded, unpack_by_tar
from tests.support.pythons import Pair, require, small
from tests.support.roots import needs_root
from tests.support.steps import Steps, in_child


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A small Python's bundle, and one of a virtualenv for it."""
    return Pair.make(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def srv(tmp_path: Path) -> str:
    """What the roots and the interpreters are in."""
    return str(tmp_path / "srv")


def bundle(pair: Pair) -> PythonBundle:
    """The Python's bundle, as an operator names it."""
    return PythonBundle(pair.python.archive, pair.digests)


def deploy(pair: Pair, path: str, **options: Any) -> str:
    """Deploy a release onto the bundle's Python; the program that it runs on."""
    done = publish(pair.app, path, python=bundle(pair), **options)
    assert done.changed
    assert done.problems == []
    assert done.python is not None
    return done.python


def interpreters(srv: str) -> list[str]:
    """The names of those that are there."""
    return [one.name for one in Place(f"{srv}/pythons").installed()]


def refused(pair: Pair, path: str, python: PythonBundle, **options: Any) -> str:
    """The sentence that refuses a release; nothing is there under its name then."""
    with pytest.raises(RelocateError) as caught:
        publish(pair.app, path, python=python, **options)
    assert roots.one_sentence(caught.value)
    assert not os.path.lexists(path)
    return str(caught.value)


def test_three_releases_of_two_apps_share_one(pair: Pair, srv: str) -> None:
    programs = {deploy(pair, f"{srv}/{name}") for name in ("shop/1", "shop/2", "blog/1")}
    (name,) = interpreters(srv)
    top = f"{srv}/pythons/{name}"
    assert programs == {f"{top}/bin/python{pair.python.version.rpartition('.')[0]}"}
    assert name.startswith(f"cpython-{pair.python.version}-")
    assert pair.python.manifest.startswith(name.rpartition("-")[2])
    for release in (f"{srv}/shop/1", f"{srv}/shop/2", f"{srv}/blog/1"):
        assert check(release, deep=True).ok
        ask = "import sys; print(sys.prefix, sys.base_prefix)"
        done = subprocess.run([f"{release}/bin/python", "-c", ask], capture_output=True, text=True)
        assert done.stdout.split() == [release, top]
        assert f"home = {top}/bin\n" in Path(release, "pyvenv.cfg").read_text()


def test_nothing_that_describes_it_refers_to_where_it_was_built(pair: Pair, srv: str) -> None:
    top = os.path.dirname(os.path.dirname(deploy(pair, f"{srv}/shop/1")))
    old = [os.fsencode(one) for one in read_head(pair).prefixes]
    left, new = [], []
    for path in Path(top).rglob("*"):
        if path.is_file() and not path.is_symlink() and ".relocation" not in path.parts:
            data = path.read_bytes()
            if not data.startswith(b"\x7fELF"):
                # WASM_ASSETS_DIR is `.$(prefix)`: no reference, and only for WebAssembly.
                left += [str(path) for prefix in old if prefix in data.replace(b"./", b"")]
                new += [path.name] if os.fsencode(top) in data else []
    assert left == []
    assert "Makefile" in new
    for source in Path(top).rglob("_sysconfigdata*.py"):
        (compiled,) = source.parent.glob(f"__pycache__/{source.stem}.*.pyc")
        data, status = compiled.read_bytes(), source.stat()
        assert os.fsencode(top) in data
        assert struct.unpack("<II", data[8:16]) == (int(status.st_mtime), status.st_size)
    ask = "import sysconfig; print(sysconfig.get_config_var('prefix'))"
    python = f"{top}/bin/python3"
    done = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True)
    assert done.stdout.strip() == top


def read_head(pair: Pair) -> Any:
    """The head of the bundle's manifest."""
    with reader.of_archive(pair.python.archive, reader.require_interpreter) as known:
        return known.head


def test_there_and_back_gives_every_byte_again(pair: Pair, tmp_path: Path) -> None:
    top = unpack_by_tar(pair.python.archive, tmp_path / "python")
    head = read_head(pair)
    one, other = "/srv/pythons/one", "/srv/somewhere/else/that/is/longer/by/far/than/the/first"
    relocate(top, head, one)
    shutil.rmtree(f"{top}/.relocation")
    first = environments.digest(top, times="files")
    moved = relocate(top, head, other, one)
    assert sum(moved.rewritten.values()) >= 4
    assert environments.digest(top, times="files") != first
    relocate(top, head, one, other)
    assert environments.digest(top, times="files") == first


def test_an_archive_of_another_tool_runs_on_it_too(pair: Pair, srv: str, tmp_path: Path) -> None:
    """What it needs is seen once it is unpacked; nobody is registered where that does not fit."""
    plain = tmp_path / "plain"
    unpack_by_tar(pair.app, plain)
    shutil.rmtree(plain / ".relocation")
    archive = str(tmp_path / "plain.tar")
    subprocess.run(["tar", "-cf", archive, "-C", plain, "."], check=True)
    done = publish(archive, f"{srv}/shop/1", python=bundle(pair))
    (name,) = interpreters(srv)
    assert done.python is not None
    assert done.python.startswith(f"{srv}/pythons/{name}/bin/")
    assert check(f"{srv}/shop/1").ok
    (library,) = (plain / "lib").glob("python3*")
    library.rename(library.with_name("python3.99"))
    config = (plain / "pyvenv.cfg").read_text().replace(pair.python.version, "3.99.1")
    (plain / "pyvenv.cfg").write_text(config)
    subprocess.run(["tar", "-cf", archive, "-C", plain, "."], check=True)
    with pytest.raises(RelocateError, match=r"3\.99"):
        publish(archive, f"{srv}/shop/2", python=bundle(pair))
    assert len(os.listdir(f"{srv}/pythons/.pythons/users/{name}")) == 1


# --- what it misses of the system ----------------------------------------------------------------


@pytest.mark.slow
def test_a_library_that_is_missing_is_reported_until_it_is_installed(
    pair: Pair, srv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stands for a library of the system that is not there: its module needs another name."""
    prefix = Path(small(require(), tmp_path / "small"))
    (module,) = prefix.glob("lib/python3*/lib-dynload/zlib.*.so")
    module.write_bytes(module.read_bytes().replace(b"libz.so.1", b"libq.so.1"))
    packed = pack_python(str(prefix), str(tmp_path / "python.tar"))
    assert "libq.so.1" in packed.libraries
    python = PythonBundle(packed.archive, {"sha256": packed.sha256})
    for name in ("1", "2"):
        (problem,) = publish(pair.app, f"{srv}/shop/{name}", python=python).problems
        assert os.path.basename(problem["file"]) == module.name
        assert "libq.so.1 is not installed here: install" in problem["reason"]
    (found,) = Place(f"{srv}/pythons").installed()
    assert len(found.as_dict()["problems"]) == 1
    libraries = tmp_path / "ld.so.cache"
    libraries.touch()
    monkeypatch.setattr(install, "_LIBRARIES", str(libraries))
    library = next(path for path in mapped("zlib") if "libz.so" in path)
    shutil.copy(library, f"{found.path}/lib/libq.so.1")
    assert publish(pair.app, f"{srv}/shop/3", python=python).problems == []
    assert "problems" not in Place(f"{srv}/pythons").installed()[0].as_dict()
    os.unlink(f"{found.path}/lib/libq.so.1")
    assert list(verify_python(f"{srv}/shop/3")) == []
    (lacks,) = check(f"{srv}/shop/3").problems  # it was there when this one was deployed
    assert (lacks.kind, os.path.basename(lacks.file)) == ("system", module.name)
    assert lacks.file.startswith(f"{found.path}/")
    assert "libq.so.1 is not installed here: install" in lacks.reason
    assert check(f"{srv}/shop/3", deep=True).problems == (lacks,)
    os.utime(libraries, (1, 1))  # as the system's package manager does when it removes one
    (again,) = publish(pair.app, f"{srv}/shop/again", python=python).problems
    assert again == problem
    publish(pair.app, f"{srv}/shop/4")
    assert check(f"{srv}/shop/4").ok
    done = reinitialize(f"{srv}/shop/4", python)
    assert [one["file"] for one in done.problems] == [problem["file"]]
    command = [sys.executable, "-m", "relocate_core"]
    for options in (["--python", done.old_python or "", "--reinitialize"], ["--check"]):
        subprocess.run([*command, *options, f"{srv}/shop/4"], check=True)
    for options in (["--python", found.executable, "--reinitialize"], ["--check"]):
        ended = subprocess.run([*command, *options, f"{srv}/shop/4"], capture_output=True)
        assert ended.returncode == (1 if options == ["--check"] else 0)
        assert b"libq.so.1 is not installed here" in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("error", "library"),
    [
        ("libssl.so.3: cannot open shared object file: No such file or directory", "libssl.so.3"),
        ("Error loading shared library libssl.so.3: No such file or directory", "libssl.so.3"),
        (
            "python3: error while loading shared libraries: libexpat.so.1: cannot open shared",
            "libexpat.so.1",
        ),
        ("/lib/libc.so.6: version `GLIBC_2.38' not found (required by /srv/bin/python3)", None),
        ("undefined symbol: PyNo", None),
    ],
)
def test_a_missing_library_is_understood(error: str, library: str | None) -> None:
    found = library_in(error)
    assert (
        found is None if library is None else str(found).startswith(f"{library} is not installed")
    )


def mapped(module: str) -> list[str]:
    """The paths that a Python of this machine maps once it has imported a module."""
    ask = f"import {module}; print(open('/proc/self/maps').read())"
    program = inspect(require()).executable
    done = subprocess.run([program, "-c", ask], capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in done.stdout.splitlines() if "/" in line]


def test_missing_certificates_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    program = inspect(require()).executable
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setitem(VARIABLES, name, "/nonexistent")
    assert any("install ca-certificates" in reason for _, reason in missing(program))
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setitem(VARIABLES, name, os.path.abspath(__file__))
    assert not any("ca-certificates" in reason for _, reason in missing(program))


# --- what is there already -----------------------------------------------------------------------


def test_its_archive_is_not_read_where_it_is_there(pair: Pair, srv: str) -> None:
    deploy(pair, f"{srv}/shop/1")
    absent = PythonBundle("/nonexistent.tar", pair.digests)
    looked = publish(pair.app, f"{srv}/shop/2", python=absent, dry_run=True)
    assert looked.python is not None
    assert publish(pair.app, f"{srv}/shop/2", python=absent).python == looked.python


def test_a_dry_run_says_that_it_is_missing(pair: Pair, srv: str) -> None:
    looked = publish(pair.app, f"{srv}/shop/1", python=bundle(pair), dry_run=True)
    assert (looked.changed, looked.python) == (True, None)
    assert not os.path.lexists(srv)


def test_something_else_under_its_name_is_no_victim(pair: Pair, srv: str) -> None:
    deploy(pair, f"{srv}/shop/1")
    (name,) = interpreters(srv)
    shutil.rmtree(f"{srv}/shop")
    os.unlink(f"{srv}/pythons/{name}/.interpreter.json")
    assert "no interpreter that was deployed" in refused(pair, f"{srv}/shop/1", bundle(pair))
    assert os.path.isdir(f"{srv}/pythons/{name}/lib")


# --- what does not fit ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"libc_version": "9.99"}, "need glibc 9.99, and this machine has"),
        ({"machine": "vax"}, "are for vax"),
        ({"python": "3.6", "version": "3.6.1"}, "it is Python 3.6 and the virtualenv is for"),
        ({"implementation": "../../evil"}, "impossible interpreter"),
        ({"version": "3.12.1/../../evil"}, "impossible version"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_unpacked(
    changes: dict[str, str], text: str, pair: Pair, srv: str, tmp_path: Path
) -> None:
    other = reheaded(pair.python.archive, tmp_path / "other.tar", **changes)
    python = PythonBundle(other, {"sha256": environments_sha256(other)})
    assert text in refused(pair, f"{srv}/shop/1", python)
    assert interpreters(srv) == []
    assert os.listdir(f"{srv}/pythons/.pythons/staging") == []


def environments_sha256(path: str) -> str:
    """The SHA-256 of a file."""
    done = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def test_another_program_than_the_manifest_says_is_refused(
    pair: Pair, srv: str, tmp_path: Path
) -> None:
    head = read_head(pair)
    own = {**vars(head.interpreter), "cache_tag": "cpython-99"}
    other = reheaded(pair.python.archive, tmp_path / "other.tar", interpreter=own)
    python = PythonBundle(other, {"sha256": environments_sha256(other)})
    assert "its cache_tag is" in refused(pair, f"{srv}/shop/1", python)
    assert interpreters(srv) == []


@needs_root
def test_root_runs_none_whose_hash_was_not_given(pair: Pair, srv: str) -> None:
    for digests in (None, {"md5": "0" * 32}):
        sentence = refused(pair, f"{srv}/shop/1", PythonBundle(pair.python.archive, digests))
        assert "give it as source_hash" in sentence
    assert not os.path.lexists(srv)
    named = publish(
        pair.app, f"{srv}/shop/1", python=PythonBundle(pair.python.archive), owner=(0, 0)
    )
    assert named.changed


@needs_root
def test_all_of_it_belongs_to_root_and_others_run_it(pair: Pair) -> None:
    tries = [f"python -c 'import json, os, zlib; assert os.getuid() == {roots.NOBODY}'"]
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # those of pytest are closed to others
        os.chmod(place, 0o755)
        release = f"{place}/shop/1"
        deploy(pair, release, owner=(roots.NOBODY, roots.NOBODY), smoke_tests=tries)
        assert os.stat(release).st_uid == roots.NOBODY
        for path in Path(f"{place}/pythons").rglob("*"):
            status = path.lstat()
            assert (status.st_uid, status.st_gid) == (0, 0), path
            assert path.is_symlink() or not status.st_mode & 0o022, path


# --- pruning --------------------------------------------------------------------------------------


def test_it_goes_with_the_last_release_that_uses_it(pair: Pair, srv: str) -> None:
    for name in ("shop/1", "shop/2", "shop/3", "blog/1"):
        deploy(pair, f"{srv}/{name}")
        activate(f"{srv}/{name}")
    done = prune(f"{srv}/shop", 1)
    assert (done.removed, done.pythons) == (["1"], [])
    (name,) = interpreters(srv)
    shutil.rmtree(f"{srv}/shop")
    assert prune(f"{srv}/blog", 1).pythons == []
    os.unlink(f"{srv}/blog/current")
    deploy_plain(pair, f"{srv}/blog/2")
    activate(f"{srv}/blog/2")
    (place,) = [one.path for one in Place(f"{srv}/pythons").installed()]
    remove(f"{srv}/blog/1")
    looked = prune(f"{srv}/blog", 1, dry_run=True)
    assert looked.pythons == [place]
    assert interpreters(srv) == [name]
    assert prune(f"{srv}/blog", 1).pythons == [place]
    assert os.listdir(f"{srv}/pythons") == [".pythons"]
    assert os.listdir(f"{srv}/pythons/.pythons/users") == []


def deploy_plain(pair: Pair, path: str) -> None:
    """A release on the Python that this machine has."""
    base = os.path.realpath(os.path.join(read_head(pair).prefixes[-1], "bin/python3"))
    assert publish(pair.app, path, python=base).changed


def test_a_dry_run_counts_the_releases_as_gone_that_it_would_remove(pair: Pair, srv: str) -> None:
    deploy(pair, f"{srv}/shop/1")
    for name in "23":
        deploy_plain(pair, f"{srv}/shop/{name}")
        activate(f"{srv}/shop/{name}")
    looked = prune(f"{srv}/shop", 1, dry_run=True)
    assert looked.removed == ["1"]
    assert [os.path.basename(one) for one in looked.pythons] == interpreters(srv)
    done = prune(f"{srv}/shop", 1)
    assert (done.removed, done.pythons) == (looked.removed, looked.pythons)


def test_one_that_a_process_runs_stays(pair: Pair, srv: str) -> None:
    program = deploy(pair, f"{srv}/shop/1")
    shutil.rmtree(f"{srv}/shop/1")
    process = subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert prune(f"{srv}/shop", 1).pythons == []
    finally:
        process.communicate(b"\n")
    assert len(prune(f"{srv}/shop", 1).pythons) == 1


def test_one_that_a_release_is_being_deployed_onto_stays(pair: Pair, srv: str) -> None:
    """From another root, whose lock is not held: as long as that call lives, and no longer."""
    os.makedirs(f"{srv}/blog")
    found: list[Any] = []

    def notify(step: str, _: object) -> None:
        if step == "checked":
            found.append(prune(f"{srv}/blog", 1).pythons)

    deploy(pair, f"{srv}/shop/1", notify=notify)
    assert found == [[]]
    with pytest.raises(RelocateError):
        publish(pair.app, f"{srv}/shop/2", python=bundle(pair), smoke_tests=["false"])
    shutil.rmtree(f"{srv}/shop/1")
    assert len(prune(f"{srv}/blog", 1).pythons) == 1


def test_one_that_a_release_was_put_onto_by_its_path_stays(pair: Pair, srv: str) -> None:
    """Also where that release is nowhere near, and also a virtualenv beside made by hand."""
    program = deploy(pair, f"{srv}/shop/1")
    far = os.path.join(os.path.dirname(srv), "far", "away", "app", "1")
    os.makedirs(os.path.dirname(far))
    assert publish(pair.app, far, python=program).python == program
    os.makedirs(f"{srv}/blog")
    shutil.rmtree(f"{srv}/shop")
    assert prune(f"{srv}/blog", 1).pythons == []
    os.makedirs(f"{srv}/tools/bin")
    os.symlink(program, f"{srv}/tools/bin/python")
    os.mkfifo(f"{srv}/tools/pyvenv.cfg")  # by whoever owns it, for prune to wait for ever
    shutil.rmtree(far)
    assert prune(f"{srv}/blog", 1).pythons == []
    os.unlink(f"{srv}/tools/bin/python")
    assert len(prune(f"{srv}/blog", 1).pythons) == 1


def test_a_release_whose_interpreter_is_gone_is_repaired(pair: Pair, srv: str) -> None:
    program = deploy(pair, f"{srv}/shop/1")
    shutil.rmtree(os.path.dirname(os.path.dirname(program)))
    assert not check(f"{srv}/shop/1").ok
    done = publish(pair.app, f"{srv}/shop/1", python=bundle(pair))
    assert (done.repaired, done.python) == (True, program)
    assert check(f"{srv}/shop/1", deep=True).ok
    assert list(users.users(Place(f"{srv}/pythons"), Place(f"{srv}/pythons").installed()[0]))


def test_a_release_can_leave_it(pair: Pair, srv: str) -> None:
    deploy(pair, f"{srv}/shop/1")
    base = os.path.realpath(os.path.join(read_head(pair).prefixes[-1], "bin/python3"))
    reinitialize(f"{srv}/shop/1", base)
    assert len(prune(f"{srv}/shop", 1).pythons) == 1
    assert check(f"{srv}/shop/1").ok


def test_a_foreign_directory_of_that_name_is_left(pair: Pair, srv: str) -> None:
    os.makedirs(f"{srv}/shop")
    os.makedirs(f"{srv}/pythons/cpython-3.12.1-0123456789ab/bin")
    assert prune(f"{srv}/shop", 1).pythons == []
    assert sys.executable
    assert os.listdir(f"{srv}/pythons") == ["cpython-3.12.1-0123456789ab"]


# --- others ---------------------------------------------------------------------------------------


def test_a_deploy_with_nothing_to_do_removes_what_a_failed_one_has_left(
    pair: Pair, srv: str
) -> None:
    """But for what somebody works on now, whom it does not wait for."""
    deploy(pair, f"{srv}/shop/1")
    left = Path(srv, "pythons", ".pythons", "staging", "left")
    left.mkdir()
    with staging.opened(f"{srv}/pythons", RECORDS, "working", 0):
        assert not publish(pair.app, f"{srv}/shop/1").changed
        assert left.exists()
    assert not publish(pair.app, f"{srv}/shop/1", dry_run=True).changed
    assert left.exists()
    assert not publish(pair.app, f"{srv}/shop/1").changed
    assert not left.exists()


def test_two_deploys_at_once_unpack_it_once(pair: Pair, srv: str) -> None:
    unpacked: list[str] = []

    def notify(step: str, _: object) -> None:
        if step == "interpreter":
            unpacked.append(step)

    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(deploy, pair, f"{srv}/{app}/1", notify=notify) for app in "abc"]
        programs = {call.result() for call in calls}
    assert len(programs) == len(unpacked) == len(interpreters(srv)) == 1
    (one,) = Place(f"{srv}/pythons").installed()
    assert {*users.users(Place(f"{srv}/pythons"), one)} == {f"{srv}/{app}/1" for app in "abc"}


@needs_root
def test_another_user_needs_no_hash(pair: Pair, tmp_path: Path) -> None:
    """Nothing of it runs with more rights than that user has; its content is compared all the same.

    Nor can that user change the interpreters of root.
    """
    with tempfile.TemporaryDirectory(dir="/tmp") as place:  # those of pytest are closed to others
        os.chmod(place, 0o755)
        for path in (pair.python.archive, pair.app):
            shutil.copy(path, place)
        theirs, ours = f"{place}/srv", f"{place}/ours"
        deploy(pair, f"{ours}/shop/1")  # which also imports what is closed to that user
        os.makedirs(theirs)
        os.chown(theirs, roots.NOBODY, roots.NOBODY)
        python = PythonBundle(f"{place}/{os.path.basename(pair.python.archive)}")
        app = f"{place}/{os.path.basename(pair.app)}"

        def deploy_as_nobody(release: str) -> None:
            tempfile.tempdir = theirs
            os.setgroups([])
            os.setgid(roots.NOBODY)
            os.setuid(roots.NOBODY)
            publish(app, release, python=python)

        assert in_child(lambda: deploy_as_nobody(f"{theirs}/shop/1"), Steps()) == 0
        (one,) = Place(f"{theirs}/pythons").installed()
        assert os.stat(one.executable).st_uid == roots.NOBODY
        assert check(f"{theirs}/shop/1", deep=True).ok
        os.chown(f"{ours}/pythons/.pythons", roots.NOBODY, roots.NOBODY)
        shutil.rmtree(f"{ours}/shop/1")
        assert prune(f"{ours}/shop", 1).pythons == []
        os.chown(f"{ours}/pythons/.pythons", 0, 0)
        before = environments.digest(ours)
        os.makedirs(f"{ours}/app")
        os.chown(f"{ours}/app", roots.NOBODY, roots.NOBODY)
        assert in_child(lambda: deploy_as_nobody(f"{ours}/app/1"), Steps()) == 1
        after = environments.digest(ours)
        changed = {path for path, _ in before.items() ^ after.items()}
        assert all(path == "." or path.startswith("app") for path in changed)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.13", "3.11", "3.9", "3.6"])
def test_all_of_a_python(version: str, tmp_path: Path) -> None:
    """Nothing is missing in it, and it serves a release where its old prefix is gone."""
    prefix = require(version)
    packed = pack_python(prefix, str(tmp_path / "python.tar"))
    build, app = tmp_path / "build", str(tmp_path / "app.tar")
    subprocess.run([inspect(prefix).executable, "-m", "venv", build], check=True)
    pack(str(build), app)
    release = str(tmp_path / "srv/shop/1")
    done = publish(app, release, python=PythonBundle(packed.archive, {"sha256": packed.sha256}))
    assert done.problems == []
    top = os.path.dirname(os.path.dirname(str(done.python)))
    assert run_without(prefix, str(done.python), "-I", "-c", USES) == top
    ask = "import sys, ssl, ctypes; print(sys.prefix, sys.base_prefix)"
    assert run_without(prefix, f"{release}/bin/python", "-c", ask) == f"{release} {top}"
    run_without(prefix, f"{release}/bin/python", "-m", "pip", "check")
    assert check(release, deep=True).ok
    assert list(verify_python(release)) == []

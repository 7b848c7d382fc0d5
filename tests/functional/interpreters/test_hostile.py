"""Hostile bundles of interpreters: refused in one sentence, and nothing of them has run."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest

from relocate_core import Place, PythonBundle, RelocateError, check, pack_python, publish
from relocate_core.interpreters.install import provided
from tests.functional.bundles.test_attacks import (
    HEADS,
    MEMBERS,
    TOO_MUCH,
    Change,
    Parts,
    fields,
    with_file,
)
from tests.support import environments, pythons, roots
from tests.support.roots import needs_root

VIRTUALENVS_ONLY = (
    *("home-relative", "compiled-lies", "compiled-empty", "references-none", "libc"),
    "references-through-a-file",
)
"""Heads that are no lie of an interpreter's, or refused for another reason."""
OF_BUNDLES = {**MEMBERS, "target": (fields("bin/python3", linkname="beta"), "bin/python3 is not")}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A bundle with the head of a real Python, and the files that the attacks are made on.

    Its program is a script that leaves a mark: no attack may come so far as to run it.
    """
    directory = tmp_path_factory.mktemp("bundle")
    prefix = pythons.small(pythons.require(), directory / "small")
    made = Parts.of(pack_python(prefix, str(directory / "python.tar")).archive)
    program = made.head["interpreter"]["program"]
    kept = {"bin", program, "bin/python3", ".relocation/ledger.json"}
    made.rows = [row for row in made.rows if row[0] in kept]
    made.members = [one for one in made.members if one[0].name in kept]
    made.head |= {"references": ["bin/beta"], "files": len(made.rows), "machine": "", "libc": ""}
    made.head["libc_version"] = ""
    made.data(program, f"#!/bin/sh\ntouch {directory}/ran\n".encode())
    made.rehash(program)
    made.head["size"] = sum(row[3] for row in made.rows if row[1] == "file")
    for path in ("bin/beta", "bin/omega", "bin/activate_this.py", "bin/deactivate.bat"):
        with_file(path, b"text\n", 0o755)(made)
    for path in ("CACHEDIR.TAG", "etc/alone.txt", "etc/twin.txt", "etc/twin2.txt", "zz"):
        with_file(path, b"text\n")(made)
    made.rows.insert(made.rows.index(made.row("etc/alone.txt")), ["etc", "directory", 0o755])
    made.members.insert(made.at("etc/alone.txt"), made.new("etc", type=tarfile.DIRTYPE, mode=0o755))
    made.head["files"] += 1
    return made


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Where it would be unpacked, with a victim beside it."""
    (tmp_path / "srv/victims").mkdir(parents=True)
    (tmp_path / "srv/victims/file").write_text("a victim\n")
    return Place(str(tmp_path / "srv/pythons"))


def refusal(
    parts: Parts, place: Place, directory: Path, *, vouched: bool = True, ran: bool = False
) -> str:
    """The sentence that refuses a bundle; nothing is left of it, and nothing of it has run.

    Args:
        parts: the bundle.
        place: where it would be unpacked.
        directory: for its archive.
        vouched: whether its hash is given; else root is named as who may run it.
        ran: whether it comes so far as to be run.
    """
    archive = directory / "evil.tar"
    archive.write_bytes(parts.tar())
    digests = {"sha256": hashlib.sha256(archive.read_bytes()).hexdigest()} if vouched else None
    victims = environments.digest(directory / "srv/victims")
    release = str(directory / "srv/app/1")
    descriptors = len(os.listdir("/proc/self/fd"))
    python = PythonBundle(str(archive), digests)
    with (
        pytest.raises(RelocateError) as caught,
        provided(python, place, release, as_root=not vouched),
    ):
        pass
    assert roots.one_sentence(caught.value)
    assert len(str(caught.value)) < 3000
    assert environments.digest(directory / "srv/victims") == victims
    assert sorted(os.listdir(place.path)) == [".pythons"]
    assert sorted(os.listdir(place.records)) == ["lock", "staging"]
    assert os.listdir(f"{place.records}/staging") == []
    assert len(os.listdir("/proc/self/fd")) == descriptors
    (mark,) = {found for _, data in parts.members for found in re.findall(rb"touch (\S+)", data)}
    has_run = os.path.exists(os.fsdecode(mark))
    if has_run:
        os.unlink(os.fsdecode(mark))
    assert has_run is ran
    return str(caught.value)


def test_without_an_attack_it_is_unpacked_and_run(
    parts: Parts, place: Place, tmp_path: Path
) -> None:
    """So that each attack is refused for the attack alone."""
    assert "it does not run, as" in refusal(parts, place, tmp_path, ran=True)


@pytest.mark.parametrize("vouched", [False, True], ids=["unknown", "vouched"])
@pytest.mark.parametrize("name", OF_BUNDLES)
@pytest.mark.few(30)
def test_a_member_that_the_manifest_does_not_name(
    name: str, vouched: bool, parts: Parts, place: Place, tmp_path: Path
) -> None:
    change, text = OF_BUNDLES[name]
    evil = parts.copy()
    change(evil)
    sentence = refusal(evil, place, tmp_path, vouched=vouched)
    assert re.search(f"{text}|it is no bundle", sentence)


@pytest.mark.parametrize("name", [name for name in HEADS if name not in VIRTUALENVS_ONLY])
@pytest.mark.few(20)
def test_a_head_that_lies(name: str, parts: Parts, place: Place, tmp_path: Path) -> None:
    change, _ = HEADS[name]
    evil = parts.copy()
    change(evil)
    assert "it does not run" not in refusal(evil, place, tmp_path)


@pytest.mark.parametrize("key", [key for key in TOO_MUCH if key != "facts"])
@pytest.mark.few(1)
def test_a_head_with_far_too_much(key: str, parts: Parts, place: Place, tmp_path: Path) -> None:
    evil = parts.copy()
    evil.head[key] = TOO_MUCH[key]()
    assert "manifest" in refusal(evil, place, tmp_path)


def own(**values: Any) -> Change:
    """Another value in what the head has of the interpreter."""

    def change(parts: Parts) -> None:
        parts.head["interpreter"].update(values)

    return change


def linked(path: str, target: str) -> Change:
    """A symlink, in the archive and in its manifest."""

    def change(parts: Parts) -> None:
        parts.put([path, "link", target])
        number = parts.at(path)
        info = parts.members[number][0]
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777

    return change


OF_INTERPRETERS: dict[str, tuple[Change, str]] = {
    "absolute-python": (linked("bin/python9", "/usr/bin/python3"), "out of the interpreter"),
    "absolute-inside": (linked("etc/link", "/etc/passwd"), "out of the interpreter"),
    "leaving": (linked("etc/link", "../../victims"), "out of the interpreter"),
    "leaving-by-another": (
        lambda p: (linked("etc/one", "..")(p), linked("etc/two", "one/../victims")(p))[0],
        "out of the interpreter",
    ),
    "circle": (linked("etc/link", "link"), "circle"),
    "pyvenv": (with_file("pyvenv.cfg", b"home = /tmp/evil\n"), "pyvenv.cfg"),
    "pyvenv-beside-the-program": (with_file("bin/pyvenv.cfg", b"home = /x\n"), "pyvenv.cfg"),
    "program-elsewhere": (own(program="etc/alone.txt"), "impossible interpreter"),
    "program-absolute": (own(program="/bin/sh"), "manifest"),
    "program-parent": (own(program="bin/../../x"), "manifest"),
    "program-of-another-name": (own(program="bin/beta"), "impossible interpreter"),
    "flags": (own(abiflags="../"), "impossible interpreter"),
    "a-virtualenv": (lambda p: p.head.pop("interpreter") and None, "of a virtualenv"),
    "pypy": (lambda p: p.head.update(implementation="pypy"), "impossible interpreter"),
    "jython": (lambda p: p.head.update(implementation="jython"), "impossible interpreter"),
    "a-delta": (
        lambda p: p.head.update(base={"manifest": "0" * 64, "removed": [], "result": "0" * 64}),
        "delta",
    ),
}


@pytest.mark.parametrize("name", OF_INTERPRETERS)
def test_what_no_interpreter_has(name: str, parts: Parts, place: Place, tmp_path: Path) -> None:
    change, text = OF_INTERPRETERS[name]
    evil = parts.copy()
    change(evil)
    assert text in refusal(evil, place, tmp_path)


def test_another_hash(parts: Parts, place: Place, tmp_path: Path) -> None:
    """All of it is unpacked and hashed, and nothing is run."""
    archive = tmp_path / "evil.tar"
    archive.write_bytes(parts.tar())
    python = PythonBundle(str(archive), {"sha256": "0" * 64})
    release = str(tmp_path / "srv/app/1")
    with pytest.raises(RelocateError, match="sha256") as caught, provided(python, place, release):
        pass
    assert roots.one_sentence(caught.value)
    assert sorted(os.listdir(place.path)) == [".pythons"]
    assert os.listdir(f"{place.records}/staging") == []


def test_an_archive_of_something_else(place: Place, tmp_path: Path) -> None:
    """Without a manifest it is none, and is not unpacked at all."""
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as packing:
        packing.add(__file__, "bin/python3.12")
    digests = {"sha256": hashlib.sha256(archive.read_bytes()).hexdigest()}
    python, release = PythonBundle(str(archive), digests), str(tmp_path / "srv/app/1")
    with pytest.raises(RelocateError, match="no bundle"), provided(python, place, release):
        pass


@needs_root
def test_root_does_not_run_what_a_release_calls_its_interpreter() -> None:
    """To see what it misses of the system: whose release it is may have put anything there."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        top, python = Path(name), roots.python_for_all()
        release, users = top / "root" / "1", top / "users"
        archive = roots.packed(top / "archives", "1", python=python)
        publish(archive, str(release), owner=(roots.NOBODY, roots.NOBODY))
        program = top / "evil" / "bin" / os.path.basename(os.path.realpath(python))
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\nid -u >>{users}\nexec {python} "$@"\n')
        program.chmod(0o755)
        record = {"format": 1, "name": "evil", "program": f"bin/{program.name}"}
        (top / "evil" / ".interpreter.json").write_text(json.dumps(record))
        users.touch()
        os.chmod(users, 0o666)
        (release / "bin" / "python").unlink()
        (release / "bin" / "python").symlink_to(program)
        check(str(release))
        seen = users.read_text().split()
        assert len(seen) > 1, "it was not tried at all"
        assert set(seen) == {str(roots.NOBODY)}

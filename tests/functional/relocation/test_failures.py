"""What goes wrong is one sentence, and the virtualenv is what it was before."""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import pickle
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relocate_core.artefacts import kinds
from relocate_core.errors import (
    Busy,
    InvalidPath,
    NotAVirtualenv,
    RelocateError,
    TreeChanged,
    TreeError,
    UnknownPrefix,
)
from relocate_core.relocation import relocate as relocation
from relocate_core.relocation import rewriter, scan, workers
from relocate_core.relocation.relocate import relocate
from relocate_core.system import files, processes
from relocate_core.system.locks import locked
from tests.support import steps
from tests.support.environments import Environment, copy, differences, digest, make
from tests.support.steps import NEW, ROOT, Steps, small, temporaries

NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")
CLI = [sys.executable, "-m", "relocate_core"]


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [*CLI, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        **options,
    )


def assert_one_sentence(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit code 1, and one line that holds all the parts."""
    message = done.stdout + done.stderr
    assert done.returncode == 1, message
    assert len(message.splitlines()) == 1, message
    assert "Traceback" not in message
    assert "bug" not in message
    for part in parts:
        assert part in message


def refuses(tree: str, expected: type[RelocateError], text: str, new: str = NEW) -> None:
    """A relocation fails with this text, and changes nothing but directories' times."""
    before = digest(tree, times="files")
    with pytest.raises(expected, match=text) as caught:
        relocate(tree, new)
    assert "\n" not in str(caught.value)
    assert differences(before, digest(tree, times="files")) == {}


@pytest.fixture
def venv(tmp_path: Path) -> Environment:
    """A small virtualenv with one of each kind of file."""
    return small(tmp_path / "venv")


# --- no virtualenv, no such path ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("bin", "not a directory: {}/bin"),
        ("lib", "not a directory: {}/lib"),
        ("lib/python3.12", "not a directory: {}/lib/python#.#"),
        ("lib/python3.12/site-packages", "not a directory: {}/lib/python3.12/site-packages"),
        (".", "not a directory: {}/bin"),
    ],
)
def test_no_virtualenv(missing: str, message: str, venv: Environment) -> None:
    tree = venv.path
    library = os.path.basename(os.path.dirname(venv.site_packages))
    missing = missing.replace("python3.12", library)
    message = message.replace("python3.12", library)
    shutil.rmtree(os.path.normpath(os.path.join(tree, missing)))
    done = command("--update-path", NEW, tree)
    assert_one_sentence(done, f"{tree} is not a virtualenv: {message.format(tree)}")


def test_a_file_is_no_virtualenv(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("--update-path", NEW, str(tmp_path / "file"))
    assert_one_sentence(done, "is not a virtualenv: not a directory: ")


def test_no_marker(venv: Environment) -> None:
    os.unlink(f"{venv.path}/pyvenv.cfg")
    os.unlink(f"{venv.path}/bin/activate")
    refuses(venv.path, NotAVirtualenv, rf"not a file: {venv.path}/bin/activate\Z")


def test_nothing_contains_the_old_path(venv: Environment) -> None:
    shutil.rmtree(f"{venv.path}/bin")
    os.mkdir(f"{venv.path}/bin")
    assert relocate(venv.path, NEW, dry_run=True).old_prefixes == [venv.old_prefix]
    for cache in Path(venv.path).rglob("__pycache__"):
        shutil.rmtree(cache)
    for name in ("*.pth", "*.egg-link", "*/direct_url.json"):
        for path in Path(venv.site_packages).glob(name):
            path.unlink()
    refuses(venv.path, UnknownPrefix, "does not say where it was built.*--old-path")
    report = relocate(venv.path, NEW, venv.old_prefix)
    assert report.changed


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("srv/app", "--update-path must be absolute: srv/app"),
        ("", "nothing to do"),
        ("/", "--update-path must be a directory of its own: /"),
        ("/srv/../", "--update-path must be a directory of its own: /"),
        ("/srv/a\nb", r"--update-path must not hold a line break or NUL: '/srv/a\nb'"),
        ("/srv/a\rb", r"--update-path must not hold a line break or NUL: '/srv/a\rb'"),
    ],
)
def test_impossible_paths(path: str, message: str, venv: Environment) -> None:
    before = digest(venv.path)
    done = command("--update-path", path, venv.path)
    if path:
        assert_one_sentence(done, message)
    else:
        assert (done.returncode, message in done.stderr) == (2, True)
    assert digest(venv.path) == before


def test_nul_in_a_path(venv: Environment) -> None:
    refuses(venv.path, InvalidPath, "NUL", new="/srv/a\0b")
    with pytest.raises(InvalidPath, match="NUL"):
        relocate("/srv/a\0b", NEW)


# --- the operating system refuses -----------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("closed", [False, True])
def test_somebody_elses_virtualenv(closed: bool, venv: Environment) -> None:
    for directory in Path(venv.path).parents[:3]:
        if str(directory).startswith("/tmp/pytest"):
            os.chmod(directory, 0o755)
    if closed:
        os.chmod(venv.path, 0o700)
    before = digest(venv.path)
    # All before it is somebody else, who may not be able to read this Python.
    core = "import sys; sys.path.insert(0, sys.argv[1]); import relocate_core.cli, os, locale; "
    core += "import relocate_core.virtualenvs.interpreter, relocate_core.relocation.check; "
    core += "import relocate_core.relocation.relocate; "
    core += "os.setgroups([]); os.setgid(65534); os.setuid(65534); "
    core += "sys.exit(relocate_core.cli.main(sys.argv[2:]))"
    done = subprocess.run(
        [sys.executable, "-c", core, ROOT, "--update-path", NEW, venv.path],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert_one_sentence(done, f"cannot relocate {venv.path}", "permission denied", "run as the")
    assert digest(venv.path) == before


@needs_root
def test_a_directory_that_must_not_be_read(venv: Environment) -> None:
    """As somebody else, with a directory in the middle that belongs to root."""
    for directory, _, names in os.walk(venv.path):
        for name in (".", *names):
            os.chown(os.path.join(directory, name), NOBODY, NOBODY, follow_symlinks=False)
    secret = f"{venv.path}/lib/zzz"
    os.mkdir(secret, 0o700)
    os.chmod(os.path.dirname(venv.path), 0o777)
    before = digest(venv.path, times="files")
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]);"
        "from relocate_core.relocation import relocate as relocation;"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "relocation.relocate(sys.argv[2], sys.argv[3])"
    )
    open_to_all = [p for p in Path(venv.path).parents if p.stat().st_mode & 0o777 == 0o700]
    for directory in open_to_all:
        os.chmod(directory, 0o711)
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT, venv.path, NEW], capture_output=True, text=True, cwd="/"
    )
    assert f"TreeError: cannot relocate {secret}: permission denied" in done.stderr
    assert differences(before, digest(venv.path, times="files")) == {}


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Mounts small file systems."""
    if os.getuid() or sys.platform != "linux":
        pytest.skip("only root mounts file systems")
    mounted = []

    def mount(size: str, name: str = "mounted") -> str:
        directory = str(tmp_path / name)
        os.mkdir(directory)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], capture_output=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.decode().strip()}")
        mounted.append(directory)
        return directory

    yield mount
    for directory in mounted:
        subprocess.run(["umount", "-l", directory], check=False)


def test_a_read_only_file_system(tmpfs: Callable[..., str], venv: Environment) -> None:
    directory = tmpfs("64m")
    tree = copy(venv.path, f"{directory}/venv")
    before = digest(tree)
    subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
    done = command("--update-path", NEW, tree)
    assert_one_sentence(done, f"cannot relocate {tree}: read-only file system; remount")
    assert relocate(tree, NEW, dry_run=True).changed
    assert digest(tree) == before


@pytest.mark.parametrize("room", [0, 900, 1020, 1030, 1040, 1050, 1060])
@pytest.mark.few(3)
def test_a_full_disk(room: int, tmpfs: Callable[..., str], venv: Environment) -> None:
    """It fails at another step each time: `room` is what is free, in KiB; a run keeps 1024."""
    directory = tmpfs("64m")
    tree = copy(venv.path, f"{directory}/venv")
    before = digest(tree, times="files")
    with open(f"{directory}/filler", "wb") as file:
        free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize
        os.posix_fallocate(file.fileno(), 0, free - room * 1024)
    done = command("--update-path", NEW, tree)
    assert_one_sentence(done, "cannot relocate", "no space left on device; free some space")
    assert differences(before, digest(tree, times="files")) == {}
    os.unlink(f"{directory}/filler")
    assert relocate(tree, NEW).changed


def test_no_inode_left(tmpfs: Callable[..., str], venv: Environment) -> None:
    directory = tmpfs("64m,nr_inodes=2000")
    tree = copy(venv.path, f"{directory}/venv")
    before = digest(tree, times="files")
    count = 0
    while os.statvfs(directory).f_favail > 3:
        Path(directory, f"filler{count}").touch()
        count += 1
    refuses(tree, TreeError, "no space left on device; free some space")
    assert differences(before, digest(tree, times="files")) == {}


def fail_at_every(
    name: str, every: int, venv: Environment, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[int, str]]:
    """Let the n-th call of a function fail for each n; yields n and the message."""
    before = digest(venv.path, times="files")
    for number in range(1, 10_000, every):
        with monkeypatch.context() as patch:
            Steps(fail=(name, number, errno.EIO)).install(patch.setattr)
            try:
                relocate(venv.path, NEW)
            except RelocateError as error:
                yield number, str(error)
            else:
                return
        left = differences(before, digest(venv.path, times="files"))
        assert left == {}, f"{name} number {number}"


@pytest.mark.parametrize("name", ["write", "rename", "open", "utime", "symlink"])
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_a_failing_disk(
    name: str, every: int, venv: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 0
    for number, message in fail_at_every(name, every, venv, monkeypatch):
        failed = number
        expected = r"cannot relocate \S+: input/output error; the disk is failing.*"
        assert re.fullmatch(expected, message)
    assert failed >= (1 if name == "symlink" else 5)


def test_without_hard_links(venv: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    whole = copy(venv.path, f"{venv.path}-2")
    relocate(whole, NEW)
    monkeypatch.setattr(os, "link", no_link)
    relocate(venv.path, NEW)
    assert digest(venv.path, times="files") == digest(whole, times="files")


# --- somebody else is at work ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["activate", "omega.conf", "omega", "part0.py"])
@pytest.mark.parametrize("how", ["changed", "disappeared", "replaced"])
@pytest.mark.parametrize("moment", ["written", "renamed"])
@pytest.mark.few(8)
def test_a_file_that_changes_meanwhile(
    name: str, how: str, moment: str, venv: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = (
        path
        for path, print_ in digest(venv.path).items()
        if os.path.basename(path) == name and print_.type == "file"
    )
    full = os.path.join(venv.path, path)
    real_rewrite, real_rename = rewriter.rewrite, os.rename
    before = digest(venv.path, times="files")
    done = []

    def change() -> None:
        if not done:
            done.append(True)
            if how == "changed":
                with open(full, "ab") as file:
                    file.write(b"\n# somebody was here\n")
            elif how == "disappeared":
                os.unlink(full)
            else:
                Path(full + ".new").write_bytes(b"# somebody else's\n")
                real_rename(full + ".new", full)

    def rewrite(path_: str, data: bytes, *more: Any) -> Any:
        result = real_rewrite(path_, data, *more)
        if path_ == path:
            change()
        return result

    def rename(*arguments: Any, **options: Any) -> None:
        if done or arguments[1] == "RECORD":
            change()
        real_rename(*arguments, **options)

    if moment == "written":
        monkeypatch.setattr(rewriter, "rewrite", rewrite)
    else:
        monkeypatch.setattr(os, "rename", rename)
    what = "disappeared" if how == "disappeared" else "changed"
    with pytest.raises((TreeChanged, TreeError), match=f"{what} meanwhile|removing files"):
        relocate(venv.path, NEW)
    assert done
    found = differences(before, digest(venv.path, times="files"))
    assert set(found) == {path}, found
    if how == "changed":
        assert Path(full).read_bytes().endswith(b"\n# somebody was here\n")
    elif how == "replaced":
        assert Path(full).read_bytes() == b"# somebody else's\n"


def test_two_runs_at_once(venv: Environment) -> None:
    directory = files.open_root(venv.path)
    released = []

    def release() -> None:
        time.sleep(0.4)
        released.append(time.monotonic())
        lock.__exit__(None, None, None)

    lock = locked(directory, venv.path, 0)
    lock.__enter__()
    with pytest.raises(Busy, match=r"another run has been at work on it for 0\.1 seconds; wait"):
        relocate(venv.path, NEW, wait=0.1)
    thread = threading.Thread(target=release)
    thread.start()
    assert relocate(venv.path, NEW, wait=20).changed
    assert released
    thread.join()
    os.close(directory)


def test_the_lock_is_not_kept_by_a_child_of_another_thread(venv: Environment) -> None:
    directory = files.open_root(venv.path)
    with locked(directory, venv.path, 0):
        child = os.fork()
        if not child:
            time.sleep(20)
            os._exit(0)
    os.close(directory)
    try:
        assert relocate(venv.path, NEW, wait=0.1).changed
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


# --- what must not be touched ---------------------------------------------------------------------


def test_another_file_system_inside(tmpfs: Callable[..., str], tmp_path: Path) -> None:
    made = small(tmp_path / "venv")
    inside = tmpfs("1m", "venv/mounted")
    Path(inside, "file").write_text(f"{made.old_prefix}/etc\n")
    report = relocate(made.path, NEW)
    assert ("mounted", "it is another file system") in report.problems
    assert Path(inside, "file").read_text() == f"{made.old_prefix}/etc\n"


def test_pipes_sockets_and_devices(venv: Environment) -> None:
    os.mkfifo(f"{venv.path}/etc/fifo")
    server = socket.socket(socket.AF_UNIX)
    here = os.open(f"{venv.path}/etc", os.O_RDONLY)
    server.bind(f"/proc/self/fd/{here}/socket")  # a socket's own path must be short
    if not os.getuid():
        os.mknod(f"{venv.path}/etc/zero", 0o600 | 0o020000, os.makedev(1, 5))
    before = digest(venv.path)
    assert relocate(venv.path, NEW).changed
    after = digest(venv.path)
    for name in ("fifo", "socket", *(() if os.getuid() else ("zero",))):
        assert before[f"etc/{name}"] == after[f"etc/{name}"]
    server.close()
    os.close(here)


def test_hard_links_and_links_out_of_the_tree(venv: Environment, tmp_path: Path) -> None:
    text = f"prefix = {venv.old_prefix}\n"
    outside = tmp_path / "outside"
    (outside / "directory").mkdir(parents=True)
    for name in ("one", "two", "directory/three"):
        (outside / name).write_text(text)
    os.link(outside / "one", f"{venv.path}/etc/one")
    os.symlink(outside / "two", f"{venv.path}/etc/two")
    os.symlink(outside / "directory", f"{venv.path}/etc/directory")
    before, inode = digest(outside), os.stat(outside / "one").st_ino
    report = relocate(venv.path, NEW)
    assert differences(before, digest(outside)) == {}
    assert os.stat(outside / "one").st_ino == inode
    assert Path(venv.path, "etc/one").read_text() == f"prefix = {NEW}\n"
    assert os.readlink(f"{venv.path}/etc/directory") == str(outside / "directory")
    assert not {"etc/two", "etc/directory", "etc/directory/three"} & set(report.files)


def test_directories_replaced_by_links(venv: Environment, tmp_path: Path) -> None:
    """`lib64`, or a whole package, may be a link to somewhere else."""
    shutil.move(f"{venv.site_packages}/omega", tmp_path / "omega")
    os.symlink(tmp_path / "omega", f"{venv.site_packages}/omega")
    before = digest(tmp_path / "omega")
    relocate(venv.path, NEW)
    assert differences(before, digest(tmp_path / "omega")) == {}


def test_modes_owners_and_attributes(venv: Environment) -> None:
    etc = f"{venv.path}/etc"
    text = f"prefix = {venv.old_prefix}\n"
    modes = (0o400, 0o444, 0o640, 0o755, 0o4755, 0o2755, 0o1644, 0o000)
    for mode in modes if not os.getuid() else modes[:-1]:
        Path(etc, f"{mode:o}").write_text(text)
        if not os.getuid():
            os.chown(f"{etc}/{mode:o}", 12, 34)
        os.chmod(f"{etc}/{mode:o}", mode)
    try:
        os.setxattr(f"{etc}/755", "user.note", b"hello")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    for tool, arguments in (
        ("setfacl", ["-m", "u:65534:r", f"{etc}/640"]),
        ("setfacl", ["-d", "-m", "u:65534:rwx", etc]),  # what new files there would get
        ("setcap", ["cap_net_bind_service=ep", f"{etc}/755"]),
    ):
        if shutil.which(tool):
            subprocess.run([tool, *arguments], check=tool == "setfacl")
    before = digest(etc)
    relocate(venv.path, NEW)
    after = digest(etc)
    for path, found in differences(before, after).items():
        assert path == "." or set(found) == {"size", "content"}, path
    assert all(Path(etc, f"{mode:o}").read_text() == f"prefix = {NEW}\n" for mode in modes[:-1])
    relocate(venv.path, venv.old_prefix)
    assert differences(before, digest(etc)).keys() <= {"."}


def test_a_running_program(tmp_path: Path) -> None:
    """A copied interpreter with the prefix in it, while it runs."""
    made = make("venv-3.11", tmp_path / "venv", copies=True, without_pip=True)
    program = os.path.realpath(made.executable)
    with open(program, "ab") as file:
        file.write(b"\0" + made.old_prefix.encode() + b"/lib\0")
    process = subprocess.Popen([program, "-c", "import time; time.sleep(60)"])
    try:
        time.sleep(0.3)
        report = relocate(made.path, "/srv/v")
        assert process.poll() is None
        assert os.path.relpath(program, made.path) in report.files
    finally:
        process.kill()
        process.wait()
    data = Path(program).read_bytes()
    assert made.old_prefix.encode() not in data
    assert data.endswith(b"\0/srv/v" + b"/" * (len(made.old_prefix) - len("/srv/v")) + b"/lib\0")
    assert made.run("-c", "print(1)") == "1\n"


# --- large files and files that cannot be edited --------------------------------------------------


def test_a_large_text(venv: Environment) -> None:
    line = f"path = {venv.old_prefix}/share/data, {venv.old_prefix}2\n" + "x" * 1000 + "\n"
    path = Path(venv.path, "etc/large.txt")
    path.write_text(line * 20_000)
    os.chmod(path, 0o751)
    before = digest(venv.path, times="files")
    report = relocate(venv.path, NEW)
    assert path.stat().st_size > 2 * scan.WHOLE
    assert "etc/large.txt" in report.files
    expected = f"path = {NEW}/share/data, {venv.old_prefix}2\n" + "x" * 1000 + "\n"
    assert path.read_text() == expected * 20_000
    relocate(venv.path, venv.old_prefix)
    assert differences(before, digest(venv.path, times="files")) == {}


@pytest.mark.parametrize("name", ["/srv/s", NEW])
def test_a_large_binary(name: str, venv: Environment) -> None:
    program = Path(os.path.realpath("/proc/self/exe")).read_bytes()
    body = program + b"\0" + venv.old_prefix.encode() + b"/x:" + venv.old_prefix.encode() + b"/y\0"
    body += os.urandom(1) * (20 << 20)
    body += b"\0" + venv.old_prefix.encode() + b"/end\0"
    path = Path(venv.path, "lib/large.so")
    path.write_bytes(body)
    report = relocate(venv.path, name)
    assert [file for file, _ in report.problems] in ([], ["lib/large.so"])
    data = path.read_bytes()
    assert len(data) == len(body)
    assert data.startswith(program)
    assert data.count(venv.old_prefix.encode()) == 0
    assert data.count(name.encode()) == 3
    back = relocate(venv.path, venv.old_prefix)
    assert back.changed


@pytest.mark.parametrize("whole", [64, 300, 1000])
def test_small_files_as_large_ones(
    whole: int, venv: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the limits set low, ordinary texts go the way of large ones and come out the same."""
    other = copy(venv.path, f"{venv.path}-2")
    relocate(other, NEW)
    expected = digest(other, times="files")
    monkeypatch.setattr(rewriter, "WHOLE", whole)
    monkeypatch.setattr(kinds, "PIECE", 50)
    text = f"{venv.old_prefix}/a " * 3 + "\n"
    Path(venv.path, "etc/lines").write_text((text + "\n") * 30)
    relocate(venv.path, NEW)
    assert (
        Path(venv.path, "etc/lines").read_text() == (text.replace(venv.old_prefix, NEW) + "\n") * 30
    )
    monkeypatch.undo()
    os.unlink(f"{venv.path}/etc/lines")
    found = differences(expected, digest(venv.path, times="files"))
    assert {path for path in found if path.startswith("etc/")} == set()


@pytest.mark.slow
def test_one_huge_line_is_rewritten_or_reported(venv: Environment) -> None:
    path = Path(venv.path, "etc/huge.json")
    for count in (40, 400_000):
        text = "[" + f'"{venv.old_prefix}/share/some/data/file", ' * count + "0]"
        path.write_text(text)
        report = relocate(venv.path, NEW, venv.old_prefix)
        reported = [file for file, _ in report.problems]
        expected = text.replace(venv.old_prefix, NEW)
        assert (path.read_text(), reported) in ((expected, []), (text, ["etc/huge.json"]))


@pytest.mark.slow
def test_a_large_file_with_other_paths_only_is_left_alone(venv: Environment) -> None:
    path = Path(venv.path, "etc/large.txt")
    path.write_text(f"{venv.old_prefix}2/x\n" * 500_000)
    inode = path.stat().st_ino
    report = relocate(venv.path, NEW)
    assert "etc/large.txt" not in report.files
    assert path.stat().st_ino == inode


def test_what_cannot_be_edited_is_reported(venv: Environment) -> None:
    etc, text = f"{venv.path}/etc", f"prefix = {venv.old_prefix}/share\n"
    data = text.encode()
    with zipfile.ZipFile(f"{etc}/stored.zip", "w") as archive:
        archive.writestr("x", text)
    with zipfile.ZipFile(f"{etc}/deflated.egg", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", text * 100)
    with sqlite3.connect(f"{etc}/data.sqlite") as database:
        database.execute("create table t (x text)")
        database.execute("insert into t values (?)", (text,))
    database.close()
    contents = {
        "data.gz": gzip.compress(data * 100),
        "data.bz2": bz2.compress(data * 100),
        "data.xz": lzma.compress(data * 100),
        "le.txt": text.encode("utf-16"),
        "be.txt": b"\xfe\xff" + text.encode("utf-16-be"),
        "data.pickle": pickle.dumps({"x": text}, protocol=4),
        "data.bin": b"\x05\0\0\0" + bytes([len(data)]) + data + b"\0\1\2",
        "clean.gz": gzip.compress(b"nothing of interest" * 100),
        "clean.txt": "nothing of interest".encode("utf-16"),
        "broken.gz": gzip.compress(data * 100)[:-30],
        "broken.zip": b"PK\x03\x04 and no more",
    }
    for name, content in contents.items():
        Path(etc, name).write_bytes(content)
    before = digest(etc)
    report = relocate(venv.path, NEW)
    after = differences(before, digest(etc))
    assert set(after) <= {".", "omega.conf"}
    reasons = {os.path.basename(file): reason for file, reason in report.problems}
    assert {name for name in reasons if not name.startswith("broken")} == {
        *("stored.zip", "deflated.egg", "data.sqlite", "data.gz", "data.bz2", "data.xz"),
        *("le.txt", "be.txt", "data.pickle", "data.bin"),
    }
    assert "zip" in reasons["stored.zip"]
    assert "zip" in reasons["deflated.egg"]
    assert "SQLite" in reasons["data.sqlite"]
    assert "pickle" in reasons["data.pickle"]
    assert "UTF-16" in reasons["le.txt"]
    assert "UTF-16" in reasons["be.txt"]
    assert "compressed" in reasons["data.gz"]


# --- workers --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Enough files for workers."""
    return steps.large(tmp_path_factory.mktemp("big") / "venv")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many workers each scan has started."""
    real, counts = workers._start, []

    def start(scanner: scan.Scanner) -> list[workers.Worker[workers.Batch]]:
        given = real(scanner)
        counts.append(len(given))
        return given

    monkeypatch.setattr(workers, "_start", start)
    return counts


@pytest.mark.slow
def test_no_workers_to_be_had(
    big: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[int]
) -> None:
    trees = [copy(big.path, tmp_path / name) for name in ("with", "without", "thread")]
    reports = [relocate(trees[0], NEW)]
    if started != [min(workers.MOST_WORKERS, processes.usable_cores())]:
        assert processes.usable_cores() < 2
    thread = threading.Thread(target=lambda: reports.append(relocate(trees[2], NEW)))
    thread.start()
    thread.join()
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    reports.append(relocate(trees[1], NEW))
    assert started[-1] == 0
    digests = [digest(tree, times="files") for tree in trees]
    assert differences(digests[0], digests[1]) == {}
    assert differences(digests[0], digests[2]) == {}
    facts = [{**report.as_dict(), "path": ""} for report in reports]
    assert facts[0] == facts[1] == facts[2]


@pytest.mark.slow
def test_a_daemonic_process(big: Environment, tmp_path: Path) -> None:
    """What a minion's job may be: it must not have children of `multiprocessing`."""
    tree = copy(big.path, tmp_path / "tree")
    code = (
        "import multiprocessing, sys\n"
        "from relocate_core import relocate\n"
        "def job(path, new):\n"
        "    print(relocate(path, new).changed)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('fork')\n"
        "    process = context.Process(target=job, args=sys.argv[1:3], daemon=True)\n"
        "    process.start(); process.join(); sys.exit(process.exitcode)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tree, NEW], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert relocate(tree, NEW).changed is False


def test_a_failure_while_workers_are_at_work_is_put_back(big: Environment, tmp_path: Path) -> None:
    """Bytecode that other workers have rewritten by then, too."""
    tree = copy(big.path, tmp_path / "tree")
    deep = os.path.join(tree, "zzz", *["d"] * 210)
    os.makedirs(deep)
    refuses(tree, TreeError, "directories are nested more than 200 deep")
    shutil.rmtree(os.path.join(tree, "zzz"))
    assert relocate(tree, NEW).changed
    assert temporaries(tree) == []


@pytest.mark.parametrize("alone", [False, True], ids=["workers", "alone"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.few(1)
def test_an_interrupt_while_findings_are_taken_is_put_back(
    number: signal.Signals, alone: bool, big: Environment, tmp_path: Path, monkeypatch: Any
) -> None:
    """What a worker has rewritten is known to nobody else in that moment."""
    tree = copy(big.path, tmp_path / "tree")
    before = digest(tree, times="files")
    sent = []
    run = relocation._Run
    take = run._take

    def interrupted(self: relocation._Run, findings: scan.Findings) -> None:
        if findings.rewritten and not sent:
            sent.append(number)
            signal.raise_signal(number)
        take(self, findings)

    monkeypatch.setattr(run, "_take", interrupted)
    if alone:
        monkeypatch.setattr(workers, "ALONE", 1 << 30)
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            relocate(tree, NEW)
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert sent
    assert temporaries(tree) == []
    assert differences(before, digest(tree, times="files")) == {}
    assert relocate(tree, NEW).changed

"""What a build is made of: requirement files, wheels, and the tree of a project.

Each is read as the build would read it, so that its digest differs when a build would give another
result. A project is built in a copy of its tree: what backends leave in a tree (above all the
`build` of setuptools, which keeps modules that were deleted) never gets into the next build.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from ..errors import InvalidPath, TreeError, reason_of
from ..system.files import digest
from ..virtualenvs.requirements import normal_name
from .runner import find_program, output_of

_EXTRAS = re.compile(r"(.+?)(\[[\w\s.,-]+\])\Z", re.S)
_NESTED = re.compile(r"(?:-r|--requirements?|-c|--constraints?)(?:\s+|=|(?<=-[rc]))(\S.*)")
_EDITABLE = re.compile(r"(?:-e|--editable)(?:\s|=)\s*(\S+)")
_WHEEL = re.compile(r"([A-Za-z0-9][\w.]*)-([^-]+)(?:-\d[^-]*)?-[^-]+-[^-]+-[^-]+\.whl\Z")
_COMMIT = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]*\Z")
# What backends and tools leave in a tree; needed where no version control knows its files.
_PRODUCTS = re.compile(
    r"(?:__pycache__|\.git|\.hg|\.svn|\.tox|\.nox|\.eggs|\.[a-z]+_cache|.*\.egg-info|.*\.py[co])\Z"
)
_PRODUCTS_AT_TOP = {"build", "dist"}


def digest_of(*values: object) -> str:
    """A digest of plain values."""
    return hashlib.sha256(repr(values).encode("utf-8", "surrogateescape")).hexdigest()


def file_digest(path: str) -> str:
    """The SHA-256 of a file's content."""
    with open(path, "rb", 0) as file:
        return digest(file.fileno()).hex()


# --- requirement files ----------------------------------------------------------------------------


@dataclass
class Requirements:
    """Requirement or constraint files, with all that they include.

    Attributes:
        files: the files that were given, as absolute paths.
        digest: differs when the content differs.
        texts: the content of each file, for the credentials in it.
        editables: what they install as editable.
        directories: the directories that they install from.
        hashes: the hashes that they list for a distribution, by its name.
        lines: the requirements in them, and options; without those of constraint files.
    """

    files: tuple[str, ...]
    digest: str = ""
    texts: list[str] = field(default_factory=list, repr=False)
    editables: list[str] = field(default_factory=list)
    directories: list[str] = field(default_factory=list)
    hashes: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list, repr=False)


def requirements(files: Iterable[str], what: str, directory: str) -> Requirements:
    """Read requirement files.

    Args:
        files: their paths, absolute or relative to `directory`.
        what: what they are called in a message.
        directory: what relative paths in them start from, as on pip's command line.

    Raises:
        InvalidPath: one does not exist, or cannot be read.
    """
    known = Requirements(tuple(os.path.abspath(file) for file in files))
    parts: list[object] = []
    left = [(file, what, True) for file in known.files]
    seen = set()
    while left:
        file, role, asks = left.pop(0)
        if file in seen:
            continue
        seen.add(file)
        text = _text_of(file, role)
        known.texts.append(text)
        parts.append(hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest())
        for line in _lines(text):
            nested = _NESTED.match(line)
            editable = _EDITABLE.match(line)
            if editable:
                known.editables.append(editable[1])
            if "--hash" in line:
                name = normal_name(re.split(r"[^\w.-]", line)[0])
                known.hashes[name] = " ".join(sorted(re.findall(r"--hash[ =](\S+)", line)))
            if nested and "://" not in nested[1]:
                inner = os.path.join(os.path.dirname(file), os.path.expandvars(nested[1].strip()))
                left.append(
                    (inner, f"the file that {file} includes", line.startswith(("-r", "--r")))
                )
            else:
                known.lines += [line] if asks else []
                place = place_of(editable[1] if editable else line, directory)
                parts.append(place and content_of(place))
                known.directories += [place] if place and os.path.isdir(place) else []
    known.digest = digest_of(parts)
    return known


def _text_of(file: str, role: str) -> str:
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except OSError as error:
        raise InvalidPath(
            f"cannot read {role} {file}: {reason_of(error)}; give a readable file"
        ) from error


def _lines(text: str) -> Iterator[str]:
    """The lines of a requirement file, continued ones joined, without comments."""
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        line = re.sub(r"(?:^|\s)#.*", "", line).strip()
        if line:
            yield line


def place_of(requirement: str, directory: str) -> str | None:
    """The file or the directory that a requirement refers to; None where it refers to none."""
    words = requirement.rpartition(" @ ")[2].split(" ;")[0].split()
    word, is_url = re.subn(r"^file:(?://(?:localhost(?=/))?)?", "", words[0] if words else "")
    word = word.partition("#")[0]
    word = unquote(word) if is_url else word
    extras = _EXTRAS.match(word)
    path = os.path.join(directory, extras[1] if extras else word)
    if "/" not in word and not word.startswith("."):
        return None
    return path if os.path.exists(path) else None


def content_of(place: str) -> str:
    """Differs when the content of a file or a directory differs."""
    return tree(place).digest if os.path.isdir(place) else file_digest(place)


def listing(place: str) -> tuple[tuple[str, int, int], ...]:
    """The names, sizes and times of the files in a directory of packages, or of one file."""
    path = unquote(place)
    names = sorted(os.listdir(path)) if os.path.isdir(path) else [""]
    statuses = ((name, os.stat(os.path.join(path, name).rstrip("/"))) for name in names)
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in statuses)


# --- wheels ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wheel:
    """A wheel file.

    Attributes:
        path: the file.
        name: the distribution's name, in its normal form.
        version: its version.
        digest: the SHA-256 of the file.
        extras: `[a,b]`, which of its extras are wanted.
    """

    path: str
    name: str
    version: str
    digest: str
    extras: str = ""


def wheel(path: str, extras: str = "") -> Wheel:
    """What a wheel file is, by its name and content.

    Raises:
        InvalidPath: it is no wheel, or does not exist.
    """
    match = _WHEEL.match(os.path.basename(path))
    if match is None:
        raise InvalidPath(f"{path} is not named as a wheel is, such as shop-1.0-py3-none-any.whl")
    try:
        digest = file_digest(path)
    except OSError as error:
        raise InvalidPath(
            f"cannot read the wheel {path}: {reason_of(error)}; give a readable file"
        ) from None
    return Wheel(os.path.abspath(path), normal_name(match[1]), match[2], digest, extras)


# --- a project ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """The files that a project is built from.

    Attributes:
        project: the project's directory.
        top: the directory that contains all of them: that of the checkout, or the project itself.
        names: their paths, relative to `top`.
        digest: differs when the content differs.
        repository: git's directory of the checkout; None where it is no checkout.
        commit: what is checked out; None where nothing is.
        time: when that was committed, in seconds since 1970; None where nothing is.
        dirty: what differs from the commit.
        extras: `[a,b]`, which of the project's extras are wanted.
    """

    project: str
    top: str
    names: tuple[str, ...] = field(repr=False)
    digest: str
    repository: str | None = None
    commit: str | None = None
    time: int | None = None
    dirty: tuple[str, ...] = ()
    extras: str = ""

    def copy(self, directory: str) -> str:
        """Copy the tree into a directory, which is replaced; the project's path in there.

        git still works in it, for versions that are derived from tags.
        """
        shutil.rmtree(directory, ignore_errors=True)
        top = os.path.join(directory, os.path.basename(self.top) or "project")
        os.makedirs(top, 0o755)
        for name in self.names:
            source, target = os.path.join(self.top, name), os.path.join(top, name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
            if not os.path.islink(target):
                executable = os.stat(target).st_mode & stat.S_IXUSR
                os.chmod(target, 0o755 if executable else 0o644)
        if self.repository is not None:
            with open(os.path.join(top, ".git"), "w", errors="surrogateescape") as file:
                file.write(f"gitdir: {self.repository}\n")
        return os.path.normpath(os.path.join(top, os.path.relpath(self.project, self.top)))


def project(path: str) -> Tree:
    """The tree of a project; its path may end in extras, as in `/srv/shop[postgres]`.

    Raises:
        InvalidPath: there is no project.
    """
    match = _EXTRAS.match(path)
    extras = ""
    if match and not os.path.isdir(path):
        path, extras = match[1], re.sub(r"\s", "", match[2])
    if not os.path.isdir(path):
        raise InvalidPath(f"there is no directory {path}: give the directory of the project")
    kinds = ("pyproject.toml", "setup.py")
    if not any(os.path.isfile(os.path.join(path, kind)) for kind in kinds):
        raise InvalidPath(f"{path} is no Python project: it has neither of {' and '.join(kinds)}")
    known = tree(path)
    return Tree(**{**known.__dict__, "extras": extras})


def tree(path: str) -> Tree:
    """The files of a directory that a build may read: those of its checkout, or its own."""
    path = os.path.realpath(path)
    checkout = _checkout(path)
    try:
        if checkout is not None:
            return checkout
        names = tuple(sorted(_plain_names(path, "")))
        return Tree(path, path, names, _tree_digest(path, names))
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise TreeError.of(where, error, "read") from error


def _checkout(path: str) -> Tree | None:
    """The checkout that a directory is in; None where it is in none, or there is no git."""
    if find_program("git") is None:
        return None
    where = _git(path, "rev-parse", "--show-toplevel", "--absolute-git-dir")
    if where is None or len(where.splitlines()) != 2:
        return None
    top, repository = where.splitlines()
    kept = _git(top, "ls-files", "-z", "--cached", "--recurse-submodules") or ""
    other = _git(top, "ls-files", "-z", "--others", "--exclude-standard") or ""
    names = tuple(sorted(_existing(top, {*kept.split("\0"), *other.split("\0")} - {""})))
    inner = os.path.relpath(path, top)
    if not any(inner == "." or name.startswith(f"{inner}/") for name in names):
        return None  # a directory that its checkout ignores
    head = (_git(top, "show", "-s", "--format=%H %ct", "HEAD") or "").split()
    return Tree(
        path,
        top,
        names,
        _tree_digest(top, names),
        repository,
        head[0] if head else None,
        int(head[1]) if head else None,
        tuple(_dirty(path, top)),
    )


def _git(directory: str, *words: str) -> str | None:
    # The checkout may belong to another user, who pulls: its index is not changed. Its code is run
    # because that was asked for.
    options = ("--no-optional-locks", "-c", "safe.directory=*")
    return output_of("git", *options, "-C", directory, *words)


def _dirty(path: str, top: str) -> Iterator[str]:
    """What differs from the commit: tracked files anywhere, and new ones in the project."""
    for directory, untracked in ((top, "no"), (path, "normal")):
        output = _git(
            directory, "status", "--porcelain", "-z", f"--untracked-files={untracked}", "."
        )
        for entry in (output or "").split("\0"):
            if entry[2:3] == " " and (untracked == "no" or entry.startswith("??")):
                yield entry[3:]


def _existing(top: str, names: Iterable[str]) -> Iterator[str]:
    """The existing ones of these files; of a nested checkout all files, as git lists none."""
    for name in names:
        full = os.path.join(top, name)
        if name.endswith("/"):
            yield from (os.path.join(name, inner) for inner in _plain_names(full, ""))
        elif os.path.islink(full) or os.path.isfile(full):
            yield name


def _plain_names(directory: str, below: str) -> Iterator[str]:
    """The files below a directory, without the products of builds and tools."""
    with os.scandir(os.path.join(directory, below)) as entries:
        for entry in entries:
            path = os.path.join(below, entry.name)
            if _PRODUCTS.match(entry.name) or (not below and entry.name in _PRODUCTS_AT_TOP):
                continue
            if entry.is_dir(follow_symlinks=False):
                if not os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
                    yield from _plain_names(directory, path)
            elif entry.is_symlink() or entry.is_file():
                yield path


def _tree_digest(top: str, names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        full = os.path.join(top, name)
        if os.path.islink(full):
            what, content = "link", os.readlink(full)
        else:
            executable = os.stat(full).st_mode & stat.S_IXUSR
            what, content = "program" if executable else "file", file_digest(full)
        digest.update(repr((name, what, content)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


# --- the commit -----------------------------------------------------------------------------------


def commit_of(given: str | None, known: Tree | None, needed: bool) -> str:
    """The commit that a bundle is built from; "" where it is unknown.

    Args:
        given: the one that the operator gave.
        known: the project's tree.
        needed: whether it is part of the bundle's name.

    Raises:
        InvalidPath: it cannot be a commit, is needed and unknown, or would be wrong.
    """
    if given is not None:
        if not _COMMIT.match(given):
            raise InvalidPath(f"the commit must be letters and digits: {given!r}")
        return given
    if known is None or known.commit is None:
        if needed:
            raise InvalidPath(
                "the name of the archive contains {commit}, and there is none: give a project in a "
                "git checkout, or the commit"
            )
        return ""
    if not known.dirty:
        return known.commit
    if needed:
        more = f" and {len(known.dirty) - 1} more" if known.dirty[1:] else ""
        raise InvalidPath(
            f"{known.top} differs from its commit {known.commit[:10]} ({known.dirty[0]}{more}), so "
            "it must not be in the name of a bundle: commit or remove that, or give a commit"
        )
    return f"{known.commit}-dirty"

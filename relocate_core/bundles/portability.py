"""What of a virtualenv must not go into a bundle, as it would not work on another machine.

It is refused before anything is written, and so is what unpacking would refuse. What may not work
everywhere is only warned of.
"""

from __future__ import annotations

import os

from ..archives.tar import DIRECTORY, FILE, LINK, Refused, printable, require_target
from ..errors import CannotTravel
from ..virtualenvs import access
from ..virtualenvs.carried import carried_python
from ..virtualenvs.contents import read_contents
from . import links as linking
from .names import LONGEST_PATH, Names, fold, require_config, require_depth
from .tree import BYTECODE, Entry, Tree


def require_portable(tree: Tree, entries: list[Entry]) -> None:
    """Refuse what would not work on another machine; warn of what may not.

    Args:
        tree: the virtualenv.
        entries: what of it is to be packed.

    Raises:
        CannotTravel: something is not portable.
    """
    packed = {entry.path for entry in entries}
    # Its modules and symlinks are not asked for, which would take one more walk.
    contents = read_contents(tree.environment, {}, {}, tree.prefixes)
    for file, line in contents.outside:
        if file in packed:
            raise CannotTravel(
                f"cannot pack {tree.name}: {file} refers to {line}, which is outside of it; "
                "install that without --editable, or exclude the file"
            )
    if not ("pyvenv.cfg" in packed or "bin/activate" in packed):
        raise CannotTravel(
            f"cannot pack {tree.name} without pyvenv.cfg and bin/activate: nobody would take "
            "it for a virtualenv; exclude less"
        )
    links = {entry.path: tree.target(entry.path) for entry in entries if entry.kind == LINK}
    _require_unpackable(tree, entries, links)
    work = linking.Work()
    for path, target in links.items():
        fault = linking.fault(path, links, (), work)
        if fault is not None:
            raise CannotTravel(
                f"cannot pack {tree.name}: {path} {fault}; remove the symlink, or exclude it"
            )
        at_home = target.startswith(("/home/", "/root/", os.path.expanduser("~") + "/"))
        if at_home and path == "bin/python":
            tree.warn(path, f"it points to {target}, in a home directory: reinitialize it there")
    _warn_unreadable(tree, entries)
    if carried_python(tree.environment) is not None:
        version = f"Python {tree.environment.python}"
        tree.warn(
            "bin/python",
            f"the virtualenv carries its own {version}, and a bundle is put onto one of the "
            "server: install it there, or deploy a plain tar of the virtualenv",
        )
    if tree.environment.system_site_packages:
        names = ", ".join(f"{name} {version}" for name, version in tree.system_packages)
        reason = "it sees the base Python's packages, which are not packed"
        asks = f"each server is asked for {names}, and for nothing that it does not declare"
        tree.warn("pyvenv.cfg", f"{reason}: {asks if names else 'it declares to need none'}")


def _warn_unreadable(tree: Tree, entries: list[Entry]) -> None:
    """Warn of files that only their owner and group can read."""
    modes = ((one.path, one.mode, one.kind == DIRECTORY) for one in entries if one.mode)
    closed = access.closed_to_others(tree.environment, modes)
    if closed:
        reason = "others than the owner of a release cannot read it"
        tree.warn(closed[0], access.reason(reason, closed))


def _require_unpackable(tree: Tree, entries: list[Entry], links: dict[str, str]) -> None:
    """Refuse what unpacking would refuse; warn of names that not every file system takes."""
    longest = LONGEST_PATH - len(os.fsencode(os.path.abspath(tree.name)))
    names = Names(len(entries), longest, folds=False)
    folded: dict[str, str] = {}
    try:
        for path, kind, *_ in entries:
            base = path.rpartition("/")[2]
            if kind == DIRECTORY:
                require_depth(path, path)
            elif base == "pyvenv.cfg":
                size = os.stat(path, dir_fd=tree.root, follow_symlinks=False).st_size
                require_config(path, size)
            names.claim(path, base, FILE if kind == BYTECODE else kind)
            twin = folded.setdefault(fold(path), path)
            if twin != path:
                reason = "only in case or in the form of its accents"
                tree.warn(
                    path,
                    f"it differs from {printable(twin)} {reason}: it cannot be deployed to a "
                    "file system that takes both for the same name",
                )
        for path, target in links.items():
            require_target(target, path)
        names.top()
    except Refused as refusal:
        raise CannotTravel(
            f"cannot pack {tree.name}: {refusal}; change that, or exclude it"
        ) from refusal

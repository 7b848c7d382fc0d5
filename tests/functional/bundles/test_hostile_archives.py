"""Archives that attack, and archives that real tools make: the first are refused, the second taken.

Every attack stands in an archive that is otherwise a virtualenv as any, so that it is refused for
the attack alone, and every archive is unpacked amid files that are watched: see `Sandbox`.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import random
import re
import shutil
import stat
import subprocess
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from relocate_core.bundles import writer
from relocate_core.bundles.limits import Limits
from relocate_core.bundles.unpack import Unpacked, unpack
from relocate_core.errors import BadArchive, RelocateError
from tests.support.archives import (
    BLOCK,
    CHARACTER,
    COMPRESSORS,
    DEVICE,
    DIRECTORY,
    END,
    FIFO,
    GNU_MAGIC,
    HARD_LINK,
    INTERPRETER,
    LINK,
    MTIME,
    OLD_PREFIX,
    Sandbox,
    archive,
    base256,
    checksum,
    directory,
    gnu_long,
    hard_link,
    header,
    leaving_links,
    link,
    links,
    member,
    padded,
    pax,
    record,
    remove,
    set_field,
    virtualenv,
    virtualenv_members,
)

SITE = "lib/python3.11/site-packages"
MODULE = f"{SITE}/shop.py"

Attack = tuple[Callable[[Sandbox], bytes], str]


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """A watched place, all of which can be removed afterwards."""
    made = Sandbox(tmp_path / "sandbox")
    yield made
    made.reset()


def run(sandbox: Sandbox, data: bytes, name: str = "app.tar", **options: Any) -> Unpacked:
    """Unpack an archive into the sandbox; nothing but the target may be touched."""
    path = sandbox.put(data, name)
    with sandbox.watched() as target:
        return unpack(path, target, **options)


def refusal(sandbox: Sandbox, data: bytes, name: str = "app.tar", **options: Any) -> str:
    """The sentence that refuses an archive, checked to be one; what it left is checked as well."""
    with pytest.raises(BadArchive) as caught:
        run(sandbox, data, name, **options)
    sentence = str(caught.value)
    assert sentence.startswith(f"cannot unpack {sandbox.put(data, name)}: ")
    assert sentence.isprintable(), "a message is one line, and no terminal obeys it"
    assert len(sentence) < 6000, "a message is for a person"
    assert links(sandbox.target) == [], "they are made when nothing can be refused any more"
    return sentence


# -- attacks --------------------------------------------------------------------------------------


def behind(*members: bytes) -> Callable[[Sandbox], bytes]:
    """Members behind those of a virtualenv."""
    return lambda _: virtualenv(*members)


def before(*members: bytes) -> Callable[[Sandbox], bytes]:
    """Members before those of a virtualenv."""
    return lambda _: virtualenv(first=b"".join(members))


def outside(make: Callable[[Sandbox], bytes]) -> Callable[[Sandbox], bytes]:
    """A member that names something in the sandbox, behind those of a virtualenv."""
    return lambda sandbox: virtualenv(make(sandbox))


def rebuilt(change: Callable[[bytes], bytes]) -> Callable[[Sandbox], bytes]:
    """A virtualenv's archive with one change to the whole of it."""
    return lambda _: change(virtualenv())


def sparse_member(path: str, size: int, *extents: tuple[int, int], name: str = "") -> bytes:
    """A sparse file of that size, as GNU tar writes it with a map in a header (0.1)."""
    stored = b"x" * sum(length for _, length in extents)
    numbers = ",".join(str(number) for extent in extents for number in extent)
    records = {
        "GNU.sparse.size": str(size),
        "GNU.sparse.numblocks": str(len(extents)),
        "GNU.sparse.name": name or path,
        "GNU.sparse.map": numbers,
    }
    return pax(records) + member(f"GNUSparseFile.1/{path}", stored)


def with_header(number: int, field: str, value: bytes, *, repair: bool = True) -> bytes:
    """A virtualenv's archive with one field of one header replaced."""
    members = virtualenv_members()
    block, rest = members[number][:BLOCK], members[number][BLOCK:]
    members[number] = set_field(block, field, value, repair=repair) + rest
    return archive(*members)


def old_home(prefix: str, *more: bytes) -> Callable[[Sandbox], bytes]:
    """A virtualenv that claims to have been built at some place."""
    return lambda _: archive(*virtualenv_members(prefix=prefix), *more)


EVIL = member("evil", b"x")

NAMES: dict[str, Attack] = {
    "absolute": (outside(lambda s: member(s.victim, b"x")), "victim.* absolute"),
    "absolute-new": (outside(lambda s: member(f"{s.root}/evil", b"x")), "evil.* absolute"),
    "absolute-twice": (outside(lambda s: member(f"/{s.victim}", b"x")), "victim.* absolute"),
    "absolute-directory": (outside(lambda s: directory(f"{s.root}/evil/")), "evil.* absolute"),
    "absolute-in-the-prefix-field": (
        lambda s: virtualenv(header(b"evil", prefix=s.root.encode()[:155])),
        "absolute",
    ),
    "absolute-empty-prefix-field": (behind(header("evil", prefix=b"/")), "evil.* absolute"),
    "absolute-old-prefix": (behind(member(f"{OLD_PREFIX}/evil")), "evil.* absolute"),
    "parent": (behind(member("../evil", b"x")), r"\.\./evil.* \.\."),
    "parent-victim": (behind(member("../victim", b"x")), r"\.\./victim.* \.\."),
    "parent-twice": (behind(member("../../victim", b"x")), r"victim.* \.\."),
    "parent-inside": (behind(member("bin/../evil", b"x")), r"evil.* \.\."),
    "parent-behind-dot": (behind(member("./../evil", b"x")), r"evil.* \.\."),
    "parent-behind-slashes": (behind(member("bin//..//..//victim", b"x")), r"victim.* \.\."),
    "parent-at-the-end": (behind(directory("evil/..")), r"evil/\.\."),
    "parent-directory": (behind(directory("../")), r"\.\."),
    "parent-across-the-prefix-field": (behind(header("victim", prefix="..")), r"victim.* \.\."),
    "parent-deep": (behind(member(f"{'a/' * 9}{'../' * 12}victim")), r"victim.* \.\."),
    "empty": (behind(member("")), "name"),
    "empty-directory": (behind(member("", kind=DIRECTORY)), "name"),
    "dot-file": (behind(member(".", b"x")), "name"),
    "dot-link": (behind(link("./", "bin")), "name|twice"),
    "slash": (behind(directory("/")), "absolute|name"),
    "newline": (behind(member("evil\nroot::0:0", b"x")), r"evil\\n"),
    "escape": (behind(member("evil\x1b[2J", b"x")), r"evil\\x1b"),
    "delete": (behind(member("evil\x7f", b"x")), r"evil\\x7f"),
    "long-path-in-bytes": (behind(member("/".join(["ü" * 100] * 30), b"x")), "long|ü|xfc"),
    "c1-control": (behind(member("evil\u009b2J", b"x")), r"evil\\x9b"),
    "control-in-a-directory": (behind(directory("evil\r/")), r"evil\\r"),
    "long-component": (behind(member(f"evil{'e' * 252}", b"x")), "evil.* (long|255)"),
    "long-component-directory": (behind(member(f"evil{'e' * 252}/x", b"x")), "evil.* (long|255)"),
    "long-component-in-bytes": (behind(member(f"evil{'ü' * 126}", b"x")), "evil.* (long|255)"),
    "long-path": (behind(member("/".join(["evil" * 60] * 20), b"x")), "evil"),
    "long-path-by-the-target": (
        # Fits by itself, and not below the target, whose path is part of it.
        behind(member("/".join(["evil" * 50] * 20)[:4090].rstrip("/"), b"x")),
        "evil",
    ),
    "deep": (behind(member("evil/" * 800 + "x", b"x")), "evil.* (deep|nested)"),
    "deep-directories": (behind(directory("e/" * 1500)), "e/.* (deep|nested)"),
}

TWICE: dict[str, Attack] = {
    "file": (behind(EVIL, member("evil", b"y")), "evil.* twice"),
    "file-of-the-virtualenv": (behind(member("bin/activate", b"x")), "bin/activate.* twice"),
    "mode": (behind(member("evil"), member("evil", mode=0o755)), "evil.* twice"),
    "size": (behind(member("evil", b"x"), member("evil", b"xx")), "evil.* twice"),
    "beginning": (behind(member("evil", b"xx"), member("evil", b"x")), "evil.* twice"),
    "sparse": (behind(member("evil", bytes(9)), sparse_member("evil", 9)), "evil.* twice"),
    "directory": (
        behind(directory("evil/"), directory("evil/", mode=0o700)),
        "evil.* twice",
    ),
    "top-directory": (before(directory("./"), directory(".", mode=0o700)), "twice"),
    "link": (behind(link("evil", "bin"), link("evil", "lib")), "evil"),
    "hard-link": (
        behind(hard_link("evil", "pyvenv.cfg"), hard_link("evil", "bin/activate")),
        "evil",
    ),
    "dot": (behind(EVIL, member("./evil", b"y")), "evil.* twice"),
    "dot-inside": (behind(member("a/evil"), member("a/./evil", b"x")), "evil.* twice"),
    "slashes": (behind(member("a/evil"), member("a//evil", b"x")), "evil.* twice"),
    "file-then-link": (behind(EVIL, link("evil", "bin/activate")), "evil"),
    "link-then-file": (behind(link("evil", "bin/activate"), EVIL), "evil"),
    "file-then-hard-link": (behind(EVIL, hard_link("evil", "bin/activate")), "evil"),
    "file-then-directory": (behind(EVIL, directory("evil/")), "evil"),
    "directory-then-file": (behind(directory("evil/"), EVIL), "evil"),
    "implied-directory-then-file": (behind(member("evil/x"), EVIL), "evil"),
    "implied-directory-then-link": (behind(member("evil/x"), link("evil", "bin")), "evil"),
    "implied-directory-then-hard-link": (
        behind(member("evil/x"), hard_link("evil", "bin/activate")),
        "evil",
    ),
}

FOLDED: dict[str, Attack] = {  # to a file system that folds case or accents
    "case": (behind(EVIL, member("EVIL")), "EVIL"),
    "case-of-directories": (behind(member("evil/a"), member("Evil/b")), "Evil"),
    "case-of-a-link": (behind(member("a/evil"), link("a/Evil", "evil")), "Evil"),
    "case-of-the-virtualenv": (behind(member("bin/Activate")), "bin/Activate"),
    "unicode-normalisation": (behind(member("evil\u00e9"), member("evile\u0301")), "evil"),
    "unicode-casefold": (behind(member("evilß"), member("evilss")), "evil"),
    "unicode-case-and-normalisation": (behind(member("evilÉ"), member("evile\u0301")), "evil"),
    "unicode-kelvin": (behind(member("evil\u212a"), member("evilk")), "evil"),
    "link-of-another-case": (behind(link("evil", "bin"), member("EVIL/x", b"x")), "(?i)evil"),
}

BELOW: dict[str, Attack] = {  # what is no directory
    "file": (behind(EVIL, member("evil/x", b"x")), "evil"),
    "file-later": (behind(member("evil/x", b"x"), member("evil", b"x")), "evil"),
    "file-of-the-virtualenv": (behind(member("pyvenv.cfg/evil", b"x")), "pyvenv.cfg"),
    "link-out": (behind(link("evil", "../victims"), member("evil/file", b"x")), "evil"),
    "link-out-absolute": (
        lambda s: virtualenv(link("evil", s.victims), member("evil/file", b"x")),
        "evil",
    ),
    "link-out-deep": (
        lambda s: virtualenv(link("evil", s.victims), member("evil/a/b/c", b"x")),
        "evil",
    ),
    "link-out-later": (
        lambda s: virtualenv(member("evil/file", b"x"), link("evil", s.victims)),
        "evil",
    ),
    "link-out-file": (
        lambda s: virtualenv(link("evil", s.victim), member("evil", b"x")),
        "evil",
    ),
    "link-inside": (behind(link("evil", "bin"), member("evil/x", b"x")), "evil"),
    "link-of-the-virtualenv": (behind(member("lib64/evil", b"x")), "lib64"),
    "link-as-top": (
        lambda s: archive(link("app", s.victims), *virtualenv_members("app/")),
        "app",
    ),
    "link-spelled-otherwise": (behind(link("./evil", "bin"), member("evil//x", b"x")), "evil"),
    "link-and-directory": (behind(link("evil", "bin"), directory("evil/")), "evil"),
    "hard-link": (behind(hard_link("evil", "pyvenv.cfg"), member("evil/x")), "evil"),
    "interpreter": (behind(member("bin/python/evil", b"x")), "bin/python"),
}

KINDS: dict[str, Attack] = {
    "character-device": (behind(header("evil", CHARACTER, devmajor=1, devminor=3)), "evil"),
    "block-device": (behind(header("evil", DEVICE, devmajor=8, devminor=0)), "evil"),
    "fifo": (behind(header("evil", FIFO)), "evil"),
    "sparse": (behind(member("evil", b"x", b"S", magic=GNU_MAGIC)), "evil.* sparse"),
    "sparse-pax-0.1": (
        behind(pax({"GNU.sparse.map": "0,1", "GNU.sparse.size": "9"}), EVIL),
        "sparse",
    ),
    "sparse-pax-1.0": (
        behind(
            pax({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "evil"}),
            member("GNUSparseFile.0/evil", padded(b"1\n0\n1\n") + b"x"),
        ),
        "sparse",
    ),
    "sparse-pax-name": (behind(pax({"GNU.sparse.name": "../evil"}), EVIL), "evil"),
    "sparse-pax-of-a-directory": (
        behind(
            pax({"GNU.sparse.map": "", "GNU.sparse.size": "0", "GNU.sparse.name": "evil"}),
            directory("x/"),
        ),
        "sparse",
    ),
    "sparse-outside": (behind(sparse_member("evil", 9, (8, 2))), "evil.* sparse.* leaves"),
    "sparse-backwards": (behind(sparse_member("evil", 9, (4, 1), (0, 1))), "evil.* sparse.* order"),
    "sparse-overlap": (behind(sparse_member("evil", 9, (0, 4), (2, 4))), "evil.* sparse.* order"),
    "sparse-bomb": (behind(sparse_member("evil", 1 << 34)), "evil.* sparse.* 200 times"),
    "sparse-bomb-of-many": (
        behind(*(sparse_member(f"evil{n}", 1 << 28) for n in range(20))),
        "evil.* sparse.* 200 times",
    ),
    "sparse-huge": (behind(sparse_member("evil", 1 << 50)), "evil.* bytes"),
    "sparse-hidden-name": (
        behind(sparse_member("good", 9, name="../evil")),
        r"\.\./evil.* \.\.",
    ),
    "sparse-data-left": (
        behind(
            pax({"GNU.sparse.map": "0,1", "GNU.sparse.size": "9", "GNU.sparse.name": "evil"}),
            member("x", b"x" * 2000),
        ),
        "evil.* sparse.* length",
    ),
    "sparse-odd": (
        behind(
            pax({"GNU.sparse.map": "0,1,2", "GNU.sparse.size": "9", "GNU.sparse.name": "evil"}),
            EVIL,
        ),
        "evil.* sparse.* order",
    ),
    "sparse-map-without-end": (
        behind(
            pax(
                {
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": "evil",
                    "GNU.sparse.realsize": "9",
                }
            ),
            member("x", b"9\n0\n1\n" + bytes(505)),
        ),
        "evil.* sparse",
    ),
    "sparse-map-endless": (
        behind(
            pax(
                {
                    "GNU.sparse.major": "1",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": "evil",
                    "GNU.sparse.realsize": "9",
                }
            ),
            member("x", b"99999999\n" + b"0\n" * 300),
        ),
        "evil.* sparse",
    ),
    "sparse-version": (
        behind(
            pax(
                {
                    "GNU.sparse.major": "2",
                    "GNU.sparse.minor": "0",
                    "GNU.sparse.name": "evil",
                    "GNU.sparse.realsize": "9",
                }
            ),
            EVIL,
        ),
        "evil.* sparse.* version",
    ),
    "sparse-pax-global": (before(pax({"GNU.sparse.name": "../evil"}, b"g")), "sparse"),
    "volume": (behind(header("evil", b"V", magic=GNU_MAGIC)), "evil.* volume"),
    "volume-twice": (
        before(*2 * [header("evil", b"V", magic=GNU_MAGIC)]),
        "evil.* volume",
    ),
    "volume-with-data": (before(member("evil", b"x", b"V", magic=GNU_MAGIC)), "evil.* volume"),
    "multi-volume": (behind(member("evil", b"x", b"M", magic=GNU_MAGIC)), "evil.* volume"),
    "directory-dump": (behind(member("evil/", b"Yx\0\0", b"D", magic=GNU_MAGIC)), "evil"),
    "old-long-names": (behind(member("evil", b"Rename x to y\n", b"N")), "evil"),
    "solaris-header": (behind(member("evil", record("path", "../evil"), b"X"), EVIL), "evil"),
    "unknown-letter": (behind(header("evil", b"Z")), "evil.* unknown"),
    "unknown-digit": (behind(header("evil", b"8")), "evil.* unknown"),
    "unknown-byte": (behind(header("evil", b"\xff")), "evil.* unknown"),
    "setuid": (behind(member("evil", b"x", mode=0o4755)), "evil.* setuid"),
    "setgid": (behind(member("evil", b"x", mode=0o2755)), "evil.* setgid"),
    "sticky": (behind(member("evil", b"x", mode=0o1755)), "evil.* sticky"),
    "setuid-interpreter": (
        lambda _: archive(
            *(m for m in virtualenv_members() if not m.startswith(b"bin/python3\0")),
            member("bin/python3", b"\x7fELF", mode=0o6755),
        ),
        "bin/python3.* setuid",
    ),
    "directory-with-data": (behind(member("evil/", b"x" * BLOCK, DIRECTORY)), "evil.* content"),
    "directory-with-a-header-as-data": (
        behind(member("evil/", header("../victim", mode=0o777), DIRECTORY)),
        "evil.* content",
    ),
    "link-with-data": (behind(member("evil", b"x", LINK, target="bin")), "evil.* content"),
    "hard-link-with-data": (
        behind(member("evil", b"x", HARD_LINK, target="pyvenv.cfg")),
        "evil.* content",
    ),
    "file-with-a-slash": (behind(member("evil/", b"x")), "evil"),
    "file-with-a-slash-in-a-directory": (behind(member("evil/x/", b"x")), "evil"),
    "link-with-a-slash": (behind(link("evil/", "bin")), "evil"),
    "hard-link-with-a-slash": (behind(hard_link("evil/", "pyvenv.cfg")), "evil"),
}

PAX: dict[str, Attack] = {
    "absolute": (lambda s: virtualenv(pax({"path": s.victim}), EVIL), "victim.* absolute"),
    "parent": (behind(pax({"path": "../victim"}), EVIL), r"victim.* \.\."),
    "parent-of-a-directory": (behind(pax({"path": "../evil/"}), directory("x/")), r"evil.* \.\."),
    "empty-path": (behind(pax({"path": ""}), EVIL), "path|evil|name"),
    "nul-in-path": (behind(pax({"path": "evil\0/../x"}), EVIL), "evil"),
    "newline-in-path": (behind(pax({"path": "evil\nx"}), EVIL), r"evil\\n"),
    "twice": (behind(pax({"path": "bin/activate"}), EVIL), "bin/activate.* twice"),
    "below-a-file": (behind(pax({"path": "pyvenv.cfg/evil"}), EVIL), "pyvenv.cfg"),
    "link-out": (
        lambda s: virtualenv(pax({"linkpath": s.victim}), link("evil", "bin")),
        "evil",
    ),
    "link-out-parent": (behind(pax({"linkpath": "../victim"}), link("evil", "bin")), "evil"),
    "hard-link-out": (
        lambda s: virtualenv(pax({"linkpath": s.victim}), hard_link("evil", "pyvenv.cfg")),
        "evil",
    ),
    "nul-in-linkpath": (
        behind(pax({"linkpath": "bin\0/../.."}), link("evil", "bin")),
        "evil",
    ),
    "empty-linkpath": (behind(pax({"linkpath": ""}), link("evil", "bin")), "linkpath|evil"),
    "size-contradicts": (behind(pax({"size": "0"}), member("evil", b"x" * 2000)), "evil.* size"),
    "size-hides-a-member": (
        behind(pax({"size": "1024"}), member("evil"), member("../victim", b"x")),
        r"evil.* size|\.\.",
    ),
    "size-huge": (behind(pax({"size": "9" * 18}), member("evil", size=0)), "evil"),
    "size-negative": (behind(pax({"size": "-512"}), EVIL), "evil.* size"),
    "size-float": (behind(pax({"size": "1.0"}), EVIL), "evil.* size"),
    "size-spaces": (behind(pax({"size": " 1"}), EVIL), "evil.* size"),
    "size-other-digits": (behind(pax({"size": "\u0661"}), EVIL), "evil.* size"),
    "size-endless": (behind(pax({"size": "9" * 5000}), EVIL), "evil.* size"),
    "size-of-a-directory": (
        behind(pax({"size": str(9 << 30)}), directory("evil/")),
        "evil.* (size|content)",
    ),
    "mtime-no-number": (behind(pax({"mtime": "yesterday"}), EVIL), "evil.* time"),
    "mtime-nan": (behind(pax({"mtime": "nan"}), EVIL), "evil.* time"),
    "mtime-infinite": (behind(pax({"mtime": "inf"}), EVIL), "evil.* time"),
    "mtime-exponent": (behind(pax({"mtime": "1e400"}), EVIL), "evil.* time"),
    "mtime-two-dots": (behind(pax({"mtime": "1.2.3"}), EVIL), "evil.* time"),
    "mtime-endless": (behind(pax({"mtime": "9" * 5000}), EVIL), "evil.* time"),
    "mtime-newline": (behind(pax({"mtime": "1\n"}), EVIL), "evil.* time"),
    "length-too-long": (behind(pax(b"99 path=../x\n"), EVIL), "extended header"),
    "length-too-short": (behind(pax(b"7 path=../x\n"), EVIL), "extended header"),
    "length-zero": (behind(pax(b"0 path=../x\n"), EVIL), "extended header"),
    "length-negative": (behind(pax(b"-1 path=../x\n"), EVIL), "extended header"),
    "length-missing": (behind(pax(b"path=../x\n"), EVIL), "extended header"),
    "length-of-another-base": (behind(pax(b"0xd path=x\n"), EVIL), "extended header"),
    "length-huge": (behind(pax(b"9" * 4000 + b" path=x\n"), EVIL), "extended header"),
    "no-newline": (behind(pax(b"12 path=../x"), EVIL), "extended header"),
    "no-equals": (behind(pax(b"11 path../\n"), EVIL), "extended header"),
    "no-key": (behind(pax(b"6 =xy\n"), EVIL), "extended header"),
    "rubbish-behind": (behind(pax(record("path", "ok") + b"rubbish"), EVIL), "extended header"),
    "zeros-behind": (behind(pax(record("path", "ok") + bytes(9)), EVIL), "extended header"),
    "path-twice": (
        behind(pax(record("path", "good") + record("path", "../evil")), member("x")),
        "path|evil",
    ),
    "records-behind-its-size": (
        # Python's tarfile reads on to the end of the block, and obeys them.
        behind(
            member("x", record("comment", "x") + record("path", "../evil"), b"x", size=13),
            member("good"),
        ),
        "extended header",
    ),
    "global-path": (before(pax({"path": "../evil"}, b"g")), "global"),
    "global-linkpath": (before(pax({"linkpath": "../evil"}, b"g")), "global"),
    "global-size": (before(pax({"size": "0"}, b"g")), "global"),
    "global-malformed": (before(pax(b"99 comment=x\n", b"g")), "extended header"),
    "dangling": (behind(pax({"path": "evil"})), "header"),
    "dangling-before-nothing": (
        lambda _: virtualenv(pax({"comment": "evil"}), end=b""),
        "ends|header|truncated",
    ),
    "huge-header": (behind(header("evil", b"x", size=1 << 40)), "header"),
    "huge-global-header": (behind(header("evil", b"g", size=1 << 40)), "header"),
}

GNU: dict[str, Attack] = {
    "absolute": (lambda s: virtualenv(gnu_long(s.victim), EVIL), "victim.* absolute"),
    "parent": (behind(gnu_long("../victim"), EVIL), r"victim.* \.\."),
    "parent-for-a-directory": (behind(gnu_long("../evil/"), directory("x/")), r"evil.* \.\."),
    "nul-inside": (behind(gnu_long(b"evil\0/../../x\0"), member("x")), "evil"),
    "newline": (behind(gnu_long("evil\n"), member("x")), r"evil\\n"),
    "empty": (behind(gnu_long(b"\0"), EVIL), "name|evil"),
    "no-bytes": (behind(gnu_long(b""), EVIL), "name|evil"),
    "link-out": (lambda s: virtualenv(gnu_long(s.victim, b"K"), link("evil", "bin")), "evil"),
    "link-out-parent": (behind(gnu_long("../x", b"K"), link("evil", "bin")), "evil"),
    "hard-link-out": (
        lambda s: virtualenv(gnu_long(s.victim, b"K"), hard_link("evil", "pyvenv.cfg")),
        "evil",
    ),
    "long-name-huge": (behind(gnu_long("e" * (65 << 10)), EVIL), "name"),
    "long-name-huger": (behind(header("evil", b"L", size=1 << 40, magic=GNU_MAGIC)), "name"),
    "long-target-huge": (behind(gnu_long("e" * (65 << 10), b"K"), link("evil", "x")), "name"),
    "long-name-just-below": (behind(gnu_long("evil/" * 13000), EVIL), "evil"),
    "name-behind-its-size": (
        # GNU tar and Python's tarfile read on to the NUL.
        behind(gnu_long(b"good/../../evil\0", size=4), member("x")),
        "name",
    ),
    "dangling-name": (behind(gnu_long("evil")), "long name|header"),
    "dangling-target": (behind(gnu_long("evil", b"K")), "long name|header"),
    "two-names": (behind(gnu_long("good"), gnu_long("../evil"), member("x")), "two|evil"),
    "name-and-pax-path": (behind(gnu_long("good"), pax({"path": "../evil"}), EVIL), "two|evil"),
    "pax-path-and-name": (behind(pax({"path": "good"}), gnu_long("../evil"), EVIL), "two|evil"),
}

HARD_LINKS: dict[str, Attack] = {
    "absolute": (outside(lambda s: hard_link("evil", s.victim)), "evil.* absolute"),
    "absolute-old-prefix": (behind(hard_link("evil", f"{OLD_PREFIX}/pyvenv.cfg")), "evil"),
    "parent": (behind(hard_link("evil", "../victim")), r"evil.* \.\."),
    "parent-inside": (behind(hard_link("evil", "bin/../pyvenv.cfg")), r"evil.* \.\."),
    "missing": (behind(hard_link("evil", "nothing")), "evil"),
    "later": (behind(hard_link("evil", "later"), member("later", b"x")), "evil"),
    "itself": (behind(hard_link("evil", "evil")), "evil"),
    "itself-otherwise": (behind(hard_link("evil", "./evil")), "evil"),
    "to-a-directory": (behind(hard_link("evil", "bin")), "evil"),
    "to-an-implied-directory": (behind(member("a/b"), hard_link("evil", "a")), "evil"),
    "to-the-top": (behind(hard_link("evil", ".")), "evil"),
    "to-a-file-with-a-slash": (behind(hard_link("evil", "pyvenv.cfg/")), "evil"),
    "to-a-link": (behind(hard_link("evil", "lib64")), "evil"),
    "to-a-link-out": (
        lambda s: virtualenv(link("to", s.victim), hard_link("evil", "to"), member("evil", b"x")),
        "evil|to",
    ),
    "to-the-interpreter": (behind(hard_link("evil", "bin/python3")), "evil"),
    "through-a-link": (behind(hard_link("evil", f"lib64/{MODULE[4:]}")), "evil"),
    "through-a-link-out": (
        lambda s: virtualenv(link("to", s.root), hard_link("evil", "to/victim")),
        "evil|to",
    ),
    "empty": (behind(hard_link("evil", "")), "evil"),
    "newline": (behind(hard_link("evil", "pyvenv.cfg\n")), "evil"),
    "written-through": (
        # A reader that makes it and then writes to the name would write into the first file.
        behind(hard_link("evil", "bin/activate"), member("evil", b"x")),
        "evil",
    ),
    "setuid": (behind(hard_link("evil", "bin/activate", mode=0o4755), EVIL), "evil"),
}

LINKS: dict[str, Attack] = {
    "absolute": (outside(lambda s: link("evil", s.victim)), "evil"),
    "absolute-directory": (outside(lambda s: link("evil", s.victims)), "evil"),
    "absolute-root": (behind(link("evil", "/")), "evil"),
    "absolute-target-directory": (outside(lambda s: link("evil", s.target)), "evil"),
    "parent": (behind(link("evil", "..")), "evil"),
    "parent-victim": (behind(link("evil", "../victim")), "evil"),
    "parent-of-a-directory": (behind(link("bin/evil", "../../victim")), "evil"),
    "parent-and-back": (behind(link("evil", "../target/bin")), "evil"),
    "parent-behind-nothing": (behind(link("evil", "nothing/../../victim")), "evil"),
    "parent-behind-a-file": (behind(link("evil", "pyvenv.cfg/../../victim")), "evil"),
    "parent-behind-dots": (behind(link("evil", "./bin/./.././/../victim")), "evil"),
    "through-a-link": (
        # `lib/python3.11/here` is the top, so that what stands before `..` is not `here`.
        behind(link("lib/here", "..", mode=0o777), link("evil", "lib/here/../victim")),
        "evil",
    ),
    "through-a-link-later": (
        behind(link("evil", "lib/here/../victim"), link("lib/here", "..")),
        "evil",
    ),
    "through-a-deeper-link": (
        behind(
            directory("a/"),
            directory("a/b/"),
            link("a/b/c", "../.."),
            link("a/d", "b/c"),
            link("evil", "a/d/../../victim"),
        ),
        "evil",
    ),
    "through-three-links": (
        behind(link("one", "."), link("two", "one/one"), link("evil", "two/two/one/../victim")),
        "evil",
    ),
    "through-the-interpreter": (behind(link("evil", "bin/python3/../../etc/passwd")), "evil"),
    "below-the-interpreter": (
        # In Debian there is a directory /etc/python3.11, and it matches `python*`.
        behind(link("bin/python9", "/etc/python3.11"), link("evil", "bin/python9/x.py")),
        "evil",
    ),
    "itself": (behind(link("evil", "evil")), "evil"),
    "itself-otherwise": (behind(link("evil", "bin/../evil")), "evil"),
    "itself-below": (behind(link("evil", "evil/x")), "evil"),
    "circle": (behind(link("evil1", "evil2"), link("evil2", "evil1")), "evil"),
    "circle-of-three": (
        behind(link("evil1", "evil2"), link("evil2", "evil3"), link("evil3", "evil1")),
        "evil",
    ),
    "chain-too-long": (
        behind(*(link(f"evil{n}", f"evil{n + 1}") for n in range(60)), member("evil60")),
        "evil",
    ),
    "empty": (behind(link("evil", "")), "evil"),
    "newline": (behind(link("evil", "bin\n")), "evil"),
    "interpreter-that-is-none": (behind(link("bin/python-evil", "/etc/passwd")), "evil"),
    "interpreter-directory": (behind(link("bin/pythonevil", "/")), "evil"),
    "interpreter-by-dots": (behind(link("bin/pythonevil", "/usr/bin/python/../sh")), "evil"),
    "interpreter-out-by-parents": (
        behind(link("bin/pythonevil", "../../../../usr/bin/python3")),
        "evil",
    ),
    "interpreter-elsewhere": (behind(link("evil", "/usr/bin/python3.11")), "evil"),
    "interpreter-in-another-bin": (behind(link("a/bin/python3", INTERPRETER)), "a/bin/python3"),
    "library-elsewhere": (
        behind(link("lib/python2.7/evil.py", "/etc/evil.py")),
        "evil",
    ),
    "library-of-another-name": (
        behind(link("lib/python2.7/evil.py", "/usr/lib/python2.7/os.py")),
        "evil",
    ),
    "library-by-parents": (
        behind(link("lib/python2.7/evil.py", "/usr/lib/python2.7/../../lib/python2.7/evil.py")),
        "evil",
    ),
    "library-site-packages": (
        behind(link("lib/python2.7/site-packages", "/evil/lib/python2.7/site-packages")),
        "site-packages",
    ),
    "library-in-site-packages": (
        behind(link(f"{SITE}/evil.py", f"/usr/{SITE}/evil.py")),
        "evil",
    ),
    "old-prefix-and-out": (behind(link("evil", f"{OLD_PREFIX}/../../victim")), "evil"),
    "old-prefix-longer": (behind(link("evil", f"{OLD_PREFIX}2/x")), "evil"),
    "old-prefix-parent": (behind(link("evil", os.path.dirname(OLD_PREFIX))), "evil"),
    "old-prefix-through-a-link": (
        behind(link("lib/here", ".."), link("evil", f"{OLD_PREFIX}/lib/here/../victim")),
        "evil",
    ),
    "old-prefix-itself-a-circle": (behind(link("evil", f"{OLD_PREFIX}/evil")), "evil"),
    "old-prefix-root": (old_home("/", link("evil", "/etc/passwd")), "evil"),
    "old-prefix-dots": (old_home("/usr/..", link("evil", "/usr/../etc/passwd")), "evil"),
    "old-prefix-relative": (old_home("etc", link("evil", "/etc/passwd")), "evil"),
    "old-prefix-device": (
        # Whoever reads the configuration before it is relocated never ends.
        lambda _: archive(
            *(m for m in virtualenv_members(prefix="/dev") if not m.startswith(b"pyvenv.cfg")),
            link("pyvenv.cfg", "/dev/zero"),
        ),
        "pyvenv.cfg",
    ),
    "top-left-below-a-top-directory": (
        lambda _: archive(*virtualenv_members("app/"), link("app/evil", "..")),
        "evil",
    ),
    "top-left-and-entered-again": (
        # Leads inside as it stands, and elsewhere once the directory has its new name.
        lambda _: archive(*virtualenv_members("app/"), link("app/evil", "../app/bin")),
        "evil",
    ),
    "top-left-two-levels": (
        lambda _: archive(*virtualenv_members("srv/app/"), link("srv/app/evil", "../..")),
        "evil",
    ),
    "top-is-a-link": (
        lambda _: archive(*virtualenv_members("app/"), link("evil", "app")),
        "evil|virtualenv",
    ),
}

HEADERS: dict[str, Attack] = {
    "checksum-in-the-middle": (lambda _: with_header(4, "chksum", b"000001\0 ", repair=False), "."),
    "checksum-of-the-first": (lambda _: with_header(0, "chksum", b"000001\0 ", repair=False), "."),
    "checksum-no-number": (lambda _: with_header(4, "chksum", b"garbage!", repair=False), "."),
    "checksum-plus-a-prime": (
        # Equal to the right one for whoever counts modulo 65521, as Adler-32 does.
        behind(header("evil", chksum=b"%06o\0 " % (int(checksum(header("evil"))[:6], 8) + 65521))),
        "checksum",
    ),
    "checksum-empty": (lambda _: with_header(4, "chksum", b"", repair=False), "checksum"),
    "name-changed": (lambda _: with_header(4, "name", b"evil", repair=False), "checksum"),
    "size-negative": (behind(header("evil", size=base256(-512))), "evil.* size"),
    "size-negative-octal": (behind(header("evil", size=b"-1000\0")), "evil.* size"),
    "size-huge": (behind(header("evil", size=base256((1 << 80) - 1))), "evil.* size"),
    "size-larger-than-the-disk": (behind(header("evil", size=base256(1 << 55))), "evil"),
    "size-octal-at-most": (behind(header("evil", size=b"777777777777")), "evil"),
    "size-no-octal": (behind(header("evil", size=b"00000000089\0")), "evil.* size"),
    "size-hexadecimal": (behind(header("evil", size=b"0x200\0")), "evil.* size"),
    "size-underscore": (behind(header("evil", size=b"0000_0000_1\0")), "evil.* size"),
    "size-plus": (behind(header("evil", size=b"+0000000001\0")), "evil.* size"),
    "size-of-two-words": (behind(header("evil", size=b"1 2\0")), "evil.* size"),
    "size-nul-inside": (behind(header("evil", size=b"1\x002\0")), "evil.* size"),
    "mode-no-number": (behind(header("evil", mode=b"rwxr-xr")), "evil.* mode"),
    "mode-negative": (behind(header("evil", mode=base256(-1, 8))), "evil.* mode"),
    "mtime-no-number": (behind(header("evil", mtime=b"2020-01-01\0")), "evil.* time"),
    "magic-none": (lambda _: with_header(1, "magic", b"evil!!"), "header"),
    "garbage-in-the-middle": (behind(random.Random(1).randbytes(BLOCK)), "."),
    "text-in-the-middle": (behind(b"evil" * 128), "."),
    "zero-block-in-the-middle": (
        lambda _: archive(*virtualenv_members()[:4], bytes(BLOCK), *virtualenv_members()[4:]),
        "follows the end",
    ),
    "two-zero-blocks-in-the-middle": (
        lambda _: archive(*virtualenv_members(), END, EVIL),
        "follows the end",
    ),
    "garbage-behind-the-end": (rebuilt(lambda tar: tar + b"evil"), "follows the end"),
    "garbage-far-behind-the-end": (
        rebuilt(lambda tar: tar + bytes(1 << 20) + b"evil"),
        "follows the end",
    ),
    "no-end": (lambda _: virtualenv(end=b""), "."),
    "half-an-end": (lambda _: virtualenv(end=bytes(BLOCK)), "."),
    "almost-an-end": (lambda _: virtualenv(end=bytes(2 * BLOCK - 1)), "."),
    "cut-in-a-header": (rebuilt(lambda tar: tar[: 3 * BLOCK + 100]), "."),
    "cut-in-a-file": (lambda _: virtualenv(member("evil", b"x" * 5000)[:2000], end=b""), "."),
    "cut-in-padding": (lambda _: virtualenv(member("evil", b"x")[: BLOCK + 1], end=b""), "."),
    "cut-in-an-extended-header": (
        lambda _: virtualenv(pax({"path": "x" * 999})[:700], end=b""),
        ".",
    ),
    "empty": (lambda _: END, "."),
    "only-zeros": (lambda _: bytes(20 * BLOCK), "."),
    "only-a-global-header": (lambda _: archive(pax({"comment": "x"}, b"g")), "."),
    "no-virtualenv": (lambda _: archive(EVIL), "virtualenv"),
    "no-virtualenv-but-a-directory": (lambda _: archive(directory("evil/")), "virtualenv"),
    "two-virtualenvs": (
        lambda _: archive(*virtualenv_members("a/"), *virtualenv_members("b/")),
        "virtualenv",
    ),
    "something-beside-the-virtualenv": (
        lambda _: archive(*virtualenv_members("app/"), EVIL),
        "virtualenv",
    ),
    "something-beside-it-deeper": (
        lambda _: archive(*virtualenv_members("srv/app/"), member("srv/evil", b"x")),
        "virtualenv",
    ),
}

STREAMS: dict[str, Attack] = {  # each is the whole file
    "nothing": (lambda _: b"", "."),
    "one-byte": (lambda _: b"x", "."),
    "text": (lambda _: b"<html>404</html>\n" * 100, "."),
    "zip": (lambda _: b"PK\x03\x04" + bytes(600), "."),
    "rar": (lambda _: b"Rar!\x1a\x07\x00" + bytes(600), "."),
    "compress": (lambda _: b"\x1f\x9d\x90" + bytes(600), "."),
    "gzip-magic-only": (lambda _: b"\x1f\x8b", "."),
    "gzip-header-only": (lambda _: gzip.compress(b"")[:10], "."),
    "gzip-of-nothing": (lambda _: gzip.compress(b""), "."),
    "gzip-in-gzip": (lambda _: gzip.compress(gzip.compress(virtualenv())), "."),
    "gzip-garbage-behind": (rebuilt(lambda tar: gzip.compress(tar) + b"evil"), "."),
    "gzip-garbage-behind-zeros": (
        rebuilt(lambda tar: gzip.compress(tar) + bytes(512) + b"evil"),
        ".",
    ),
    "gzip-half-a-member-behind": (
        rebuilt(lambda tar: gzip.compress(tar) + gzip.compress(bytes(99))[:15]),
        ".",
    ),
    "gzip-wrong-crc": (
        rebuilt(lambda tar: gzip.compress(tar)[:-8] + b"evil" + gzip.compress(tar)[-4:]),
        ".",
    ),
    "gzip-wrong-length": (rebuilt(lambda tar: gzip.compress(tar)[:-4] + b"evil"), "."),
    "gzip-unknown-method": (
        rebuilt(lambda tar: b"\x1f\x8b\x07" + gzip.compress(tar)[3:]),
        ".",
    ),
    "gzip-second-member-of-evil": (
        rebuilt(lambda tar: gzip.compress(tar) + gzip.compress(archive(EVIL))),
        "follows the end",
    ),
    "two-archives": (rebuilt(lambda tar: tar + tar), "follows the end"),
}

GROUPS: dict[str, Mapping[str, Attack]] = {
    "name": NAMES,
    "twice": TWICE,
    "below": BELOW,
    "kind": KINDS,
    "pax": PAX,
    "gnu": GNU,
    "hardlink": HARD_LINKS,
    "link": LINKS,
    "header": HEADERS,
    "stream": STREAMS,
}
ATTACKS: dict[str, Attack] = {
    f"{group}-{name}": attack
    for group, attacks in GROUPS.items()
    for name, attack in attacks.items()
}
PACKED = (  # the attacks that are tried in every compression as well
    *("name-absolute", "name-parent-victim", "below-link-out-absolute", "kind-fifo"),
    *("pax-parent", "gnu-absolute", "hardlink-absolute", "link-through-a-link"),
    *("header-checksum-in-the-middle", "header-garbage-behind-the-end", "header-half-an-end"),
)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_an_attack_is_refused_and_touches_nothing(sandbox: Sandbox, attack: Attack) -> None:
    build, pattern = attack
    started = time.monotonic()
    sentence = refusal(sandbox, build(sandbox))
    assert time.monotonic() - started < 30  # a hang has no end
    reason = sentence[len("cannot unpack ") + len(sandbox.root) :].partition(": ")[2]
    assert re.search(pattern, reason), sentence


@pytest.mark.parametrize("attack", FOLDED.values(), ids=FOLDED.keys())
def test_twins_are_refused_where_the_file_system_takes_them_for_one(
    attack: Attack, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, pattern = attack
    assert run(sandbox, build(sandbox)).files, "this one tells them apart"
    sandbox.reset()
    monkeypatch.setattr(writer, "folds_names", lambda directory: True)
    sentence = refusal(sandbox, build(sandbox))
    assert re.search(pattern, sentence), sentence
    assert "find out who" not in sentence


@pytest.mark.parametrize("form", [form for form in COMPRESSORS if form != "tar"])
@pytest.mark.parametrize("name", PACKED)
def test_an_attack_is_refused_in_every_compression(sandbox: Sandbox, name: str, form: str) -> None:
    build, pattern = ATTACKS[name]
    sentence = refusal(sandbox, COMPRESSORS[form](build(sandbox)), f"app.{form}")
    reason = sentence[len("cannot unpack ") + len(sandbox.root) :].partition(": ")[2]
    assert re.search(pattern, reason), sentence


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", COMPRESSORS)
def test_an_archive_that_ends_too_soon_is_refused_wherever_it_ends(
    sandbox: Sandbox, form: str
) -> None:
    whole = COMPRESSORS[form](virtualenv(member("more", os.urandom(3000))))
    for length in (*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1):
        sandbox.reset()
        refusal(sandbox, whole[:length])


@pytest.mark.parametrize("form", [form for form in COMPRESSORS if form != "tar"])
@pytest.mark.parametrize("garbage", [b"x", b"evil" * 200, bytes(700) + b"evil"])
def test_what_follows_the_compressed_part_is_refused(
    sandbox: Sandbox, form: str, garbage: bytes
) -> None:
    refusal(sandbox, COMPRESSORS[form](virtualenv()) + garbage)


@pytest.mark.parametrize("form", ["tar.gz", "tar.bz2", "tar.xz", "tar.zst"])
def test_a_flipped_bit_is_found_by_the_compression(sandbox: Sandbox, form: str) -> None:
    whole = COMPRESSORS[form](virtualenv(member("more", os.urandom(5000))))
    for place in range(len(whole) // 3, len(whole) - 2000, 150):
        sandbox.reset()
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        refusal(sandbox, bytes(damaged))


def test_every_bit_of_a_header_counts(sandbox: Sandbox) -> None:
    """Whatever changes in a header changes its checksum: nothing of it may be taken."""
    whole = virtualenv()
    for place in range(345):
        sandbox.reset()
        damaged = bytearray(whole)
        damaged[place] ^= 0x01
        if not 148 <= place < 156:  # in the checksum itself, 0 and a space end it alike
            refusal(sandbox, bytes(damaged))


def test_an_archive_that_cannot_be_read_is_refused(sandbox: Sandbox) -> None:
    archives = Path(sandbox.put(b"")).parent
    os.mkfifo(archives / "fifo")  # opened as any file, it would wait for a writer for ever
    for path in (archives / "missing", archives, archives / "fifo", archives / "fifo" / "x"):
        with sandbox.watched() as target, pytest.raises(BadArchive) as caught:
            unpack(str(path), target)
        assert str(caught.value).startswith(f"cannot unpack {path}: ")


@pytest.mark.parametrize("planted", ["pyvenv.cfg", "bin", "bin/activate", SITE])
@pytest.mark.parametrize("victim", ["victim", "victims", "nowhere"])
def test_what_somebody_planted_in_the_directory_is_not_followed(
    sandbox: Sandbox, planted: str, victim: str
) -> None:
    path = os.path.join(sandbox.target, planted)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.symlink(os.path.join(sandbox.root, victim), path)
    with pytest.raises(RelocateError):
        run(sandbox, virtualenv())


# -- bombs ----------------------------------------------------------------------------------------


def written(tree: str) -> int:
    """Bytes on disk below a directory."""
    return sum(
        os.lstat(os.path.join(path, name)).st_blocks * 512
        for path, _, names in os.walk(tree)
        for name in names
    )


def bomb(form: str, head: bytes, zeros: int) -> bytes:
    """Something compressed, then many times the same stream of zeros behind it."""
    compress = COMPRESSORS[form]
    return compress(head) + compress(bytes(64 << 20)) * (zeros // (64 << 20))


@pytest.mark.parametrize("form", [form for form in COMPRESSORS if form != "tar"])
@pytest.mark.parametrize("place", ["file", "behind the end"])
@pytest.mark.few(1)
def test_a_bomb_is_defused_at_once(sandbox: Sandbox, form: str, place: str) -> None:
    size = 10 << 30
    head = virtualenv(header("evil", size=size), end=b"") if place == "file" else virtualenv()
    packed = bomb(form, head, size)
    started = time.monotonic()
    sentence = refusal(sandbox, packed)
    assert time.monotonic() - started < 30  # a hang has no end
    assert "200 times" in sentence
    assert written(sandbox.target) < 80 << 20


def test_extended_headers_without_end_are_a_bomb_too(sandbox: Sandbox) -> None:
    pile = gzip.compress(pax({"comment": "x" * 400_000}) * 100)
    started = time.monotonic()
    refusal(sandbox, gzip.compress(b"".join(virtualenv_members())) + pile * 250)
    assert time.monotonic() - started < 30  # a hang has no end


@pytest.mark.parametrize(
    "attack",
    [
        lambda: header("evil", b"x", size=8 << 30),
        lambda: header("evil", b"L", size=8 << 30, magic=GNU_MAGIC),
        lambda: header("evil", size=8 << 30),
        lambda: member("evil", bytes(100 << 20)),
    ],
    ids=["pax header", "long name", "file that is not there", "large file"],
)
def test_memory_stays_small(sandbox: Sandbox, attack: Callable[[], bytes]) -> None:
    packed = sandbox.put(gzip.compress(virtualenv(attack(), bytes(1 << 20)), 1))
    tracemalloc.start()
    try:
        with sandbox.watched() as target, pytest.raises(BadArchive):
            unpack(packed, target)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_memory_stays_small_with_a_huge_configuration(sandbox: Sandbox) -> None:
    """It is read for the old prefix, as soon as there is a link that may lead there."""
    size = 150 << 20
    config = header("pyvenv.cfg", size=size)
    others = (m for m in virtualenv_members() if not m.startswith(b"pyvenv.cfg"))
    packed = sandbox.put(config)
    with open(packed, "ab") as file:
        file.truncate(BLOCK + size)  # a hole, so that it is made and read fast
        file.seek(0, os.SEEK_END)
        file.write(archive(*others, link("evil", f"{OLD_PREFIX}/bin")))
    tracemalloc.start()
    try:
        # Refusing is as good: no virtualenv has such a file.
        with sandbox.watched() as target, suppress(BadArchive):
            unpack(packed, target)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("target", "count"), [("./" * 48, 40_000), ("./" * 490, 10_000)], ids=["short", "long"]
)
@pytest.mark.few(1)
def test_links_that_take_long_to_follow_are_no_hang(
    sandbox: Sandbox, target: str, count: int
) -> None:
    """All go through as many links as the kernel allows, each with as many steps as fit."""
    chain = [link(f"e{n}", f"{target}e{n + 1}") for n in range(37)]
    many = [link(f"f{n}", f"{target}e0") for n in range(count)]
    started = time.monotonic()
    with suppress(BadArchive):
        run(sandbox, virtualenv(*chain, *many))
    # There may be fifty times as many, in an archive of a few megabytes.
    assert time.monotonic() - started < 30  # a hang has no end


def test_links_that_double_with_every_link_are_no_hang(sandbox: Sandbox) -> None:
    doubling = [link(f"d/e{n}", f"e{n + 1}/" * 16) for n in range(60)]
    started = time.monotonic()
    with suppress(BadArchive):
        run(sandbox, virtualenv(*doubling, directory("d/e60/")))
    assert time.monotonic() - started < 30  # a hang has no end


@pytest.mark.parametrize(
    "text",
    [
        b"VIRTUAL_ENV=" * 90_000,
        b'VIRTUAL_ENV="' + b"\\" * 1_000_000,
        b"VIRTUAL_ENV='" + b"'\\''" * 250_000,
        b"VIRTUAL_ENV=" + b"$" * 1_000_000,
        b"set " * 250_000,
        b"setenv VIRTUAL_ENV " * 50_000,
        b" " * 1_000_000,
        b"\n" * 1_000_000,
        b"command = -m venv " + b" /" * 500_000,
        b"command = " + b" -m venv" * 100_000,
    ],
    ids=range(10),
)
@pytest.mark.few(1)
def test_text_that_takes_long_to_search_is_no_hang(sandbox: Sandbox, text: bytes) -> None:
    names = ("activate.csh", "activate.fish", "activate.ps1", "activate.nu", "Activate.bat")
    members = [m for m in virtualenv_members() if not m.startswith((b"pyvenv.cfg", b"bin/act"))]
    data = archive(
        *members,
        member("pyvenv.cfg", b"version = 3.11.2\n" + text),
        member("bin/activate", text),
        *(member(f"bin/{name}", text) for name in names),
        link("evil", "/somewhere/else"),
    )
    started = time.monotonic()
    refusal(sandbox, data)
    assert time.monotonic() - started < 30  # a hang has no end


# -- limits and digests ---------------------------------------------------------------------------


@pytest.mark.parametrize("form", COMPRESSORS)
def test_the_limits_are_kept_to_the_last_file_and_byte(sandbox: Sandbox, form: str) -> None:
    data = COMPRESSORS[form](virtualenv(member("more", b"x" * 10_000)))
    found = run(sandbox, data)
    assert found.files == len(virtualenv_members()) + 1
    assert found.size == sum(
        os.lstat(os.path.join(path, name)).st_size
        for path, _, names in os.walk(sandbox.target)
        for name in names
        if not os.path.islink(os.path.join(path, name))
    )
    sandbox.reset()
    assert run(sandbox, data, limits=Limits(files=found.files, size=found.size)) == found
    sandbox.reset()
    assert "members" in refusal(sandbox, data, limits=Limits(files=found.files - 1))
    sandbox.reset()
    assert "bytes" in refusal(sandbox, data, limits=Limits(size=found.size - 1))
    assert not os.path.exists(os.path.join(sandbox.target, "more"))


def test_directories_that_are_only_implied_count_as_well(sandbox: Sandbox) -> None:
    """Otherwise each member could bring a hundred of them, and use up a disk's inodes."""
    many = [member(f"{n}/{'e/' * 80}evil") for n in range(400)]
    refusal(sandbox, virtualenv(*many), limits=Limits(files=1000))


def test_a_ratio_that_is_allowed(sandbox: Sandbox) -> None:
    large = member("large", bytes(64 << 20))
    refusal(sandbox, gzip.compress(virtualenv(large)))
    sandbox.reset()
    assert run(sandbox, gzip.compress(virtualenv(large)), limits=Limits(ratio=2000)).files == 12
    sandbox.reset()
    # A small archive may shrink as it likes: templates and empty files do.
    assert run(sandbox, gzip.compress(virtualenv(member("small", bytes(20 << 20))))).files == 12


@pytest.mark.parametrize("form", COMPRESSORS)
def test_the_digests_are_those_of_the_whole_file(sandbox: Sandbox, form: str) -> None:
    data = COMPRESSORS[form](virtualenv(member("noise", os.urandom(1 << 20))))
    right = {name: hashlib.new(name, data).hexdigest() for name in ("sha256", "sha512", "md5")}
    assert run(sandbox, data).digests["sha256"] == right["sha256"]
    for digests in (right, {"sha512": right["sha512"]}, {"SHA256": right["sha256"].upper()}):
        sandbox.reset()
        assert run(sandbox, data, digests=digests).digests["sha256"] == right["sha256"]


@pytest.mark.parametrize(
    "digests",
    [
        {"sha256": "0" * 64},
        {"sha256": ""},
        {"sha256": "no digest"},
        {"sha256": "RIGHT", "sha512": "0" * 128},
        {"md5": "0" * 32},
        {"sha257": "0" * 64},
        {"": ""},
        {"shake_128": "0" * 32},
    ],
    ids=str,
)
def test_another_digest_is_refused(sandbox: Sandbox, digests: dict[str, str]) -> None:
    data = gzip.compress(virtualenv(), mtime=0)
    right = hashlib.sha256(data).hexdigest()
    digests = {name: value.replace("RIGHT", right) for name, value in digests.items()}
    sentence = refusal(sandbox, data, digests=digests)
    assert any(name in sentence for name in digests)


def test_zeros_behind_the_end_are_hashed_as_well(sandbox: Sandbox) -> None:
    for pack in (lambda tar: tar, gzip.compress):
        sandbox.reset()
        data = pack(virtualenv()) + bytes(20_000)
        assert run(sandbox, data).digests["sha256"] == hashlib.sha256(data).hexdigest()


# -- what is accepted -----------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A virtualenv as a directory, with everything in it that a tar has a special way to spell."""
    tree = tmp_path / "source" / "app"
    site = tree / SITE
    (tree / "bin").mkdir(parents=True)
    site.mkdir(parents=True)
    (tree / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.2\n")
    (tree / "bin" / "activate").write_text(f'VIRTUAL_ENV="{OLD_PREFIX}"\n')
    os.symlink(INTERPRETER, tree / "bin" / "python3.11")
    os.symlink("python3.11", tree / "bin" / "python")
    os.symlink("lib", tree / "lib64")
    os.symlink(f"{OLD_PREFIX}/etc/app.conf", tree / "lib" / "app.conf")
    os.symlink("nowhere/at/all", tree / "dangling")
    os.symlink("../lib/../bin/./activate", tree / "bin" / "roundabout")
    os.symlink("t" * 100, tree / "long-target")
    os.symlink("grün", tree / "grüner")
    for size in (0, 1, 511, 512, 513, 1024, 70_000):
        (site / f"size{size}").write_bytes(random.Random(size).randbytes(size))
    for mode in (0o400, 0o444, 0o600, 0o666, 0o700, 0o755, 0o775, 0o777):
        file = site / f"mode{mode:o}"
        file.write_text(oct(mode))
        file.chmod(mode)
        (site / f"directory{mode:o}").mkdir()
    for number, name in enumerate(["grün", "日本", "a b", "it's", 'x"y', "b\\s", "-rf", "e\u0301"]):
        (site / name).mkdir()
        (site / name / f"{number}.py").write_text(name)
    hundred = site / ("h" * 99)
    hundred.write_text("a name of more than a hundred bytes")
    for length in (99, 100, 101, 155, 156, 200):
        directory_name = "n" * ((length - len(SITE)) // 2)
        name = "n" * (length - len(SITE) - len(directory_name) - 2)
        (site / directory_name).mkdir(exist_ok=True)
        (site / directory_name / name).write_text(f"a path of {length} bytes")
    os.link(hundred, tree / "bin" / "hard")
    os.link(hundred, site / "hard-too")
    for path in (tree, *tree.rglob("*")):
        os.utime(path, ns=(0, 1_500_000_000_123_456_789), follow_symlinks=False)
    os.utime(site / "size1", ns=(0, 1_500_000_000_000_000_001))
    os.utime(site / "size0", ns=(0, 999_999_999))
    for mode in (0o700, 0o755, 0o775, 0o777):
        (site / f"directory{mode:o}").chmod(mode)
    (site / "directory400").chmod(0o2775)
    return tree


def deepen(source: Path) -> None:
    """Add names that ustar cannot hold."""
    deep = source / SITE / "/".join(["deep" * 15] * 5)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_text("a path of far more than 255 bytes")
    (source / SITE / ("ü" * 120)).write_text("of 240 bytes")
    os.symlink("t" * 101, source / "longer-target")
    os.symlink("t/" * 150, source / "far-longer-target")


def facts(tree: Path, *, as_unpacked: bool, fractions: bool) -> dict[str, tuple[object, ...]]:
    """What is at every path of a tree: kind, content, mode, time, and with whom it shares a file.

    Args:
        tree: its top.
        as_unpacked: tell what it should be like once it was packed and unpacked.
        fractions: whether the archive can hold parts of a second.
    """
    found: dict[str, tuple[object, ...]] = {}
    names: dict[int, str] = {}
    for path in sorted(tree.rglob("*")):
        name = str(path.relative_to(tree))
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        mtime = status.st_mtime_ns
        if as_unpacked and not fractions:
            mtime -= mtime % 1_000_000_000
        if path.is_symlink():
            target = os.readlink(path)
            if as_unpacked and target.startswith(OLD_PREFIX):  # points to the same place, from here
                target = os.path.relpath(target, os.path.join(OLD_PREFIX, os.path.dirname(name)))
            found[name] = ("link", target)
        elif path.is_dir():
            found[name] = ("directory", mode & 0o755 | 0o700 if as_unpacked else mode, mtime)
        else:
            mode = mode & 0o755 | 0o400 if as_unpacked else mode
            shared = names.setdefault(status.st_ino, name)
            found[name] = ("file", mode, mtime, path.read_bytes(), shared)
    return found


def packed_by(tool: str, form: str, shape: str, source: Path, to: Path) -> bytes:
    """An archive of the source, made by a tool; skips the test where that is not installed."""
    top = {"dot": ".", "directory": "app", "nested": "source/app"}
    base = {"dot": source, "directory": source.parent, "nested": source.parents[1]}[shape]
    if tool == "tarfile":
        with tarfile.open(to, "w", format=getattr(tarfile, f"{form.upper()}_FORMAT")) as tar:
            tar.add(base / top[shape], "." if shape == "dot" else top[shape])
        return to.read_bytes()
    program = shutil.which(tool)
    if program is None:
        pytest.skip(f"{tool} is not on this machine")
    if tool == "tar" and b"GNU" not in subprocess.check_output([program, "--version"]):
        pytest.skip("tar is not GNU's on this machine")
    subprocess.run(
        [program, f"--format={form}", "-cf", to, "-C", base, top[shape]],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    return to.read_bytes()


@pytest.mark.parametrize("shape", ["dot", "directory", "nested"])
@pytest.mark.parametrize(
    ("tool", "form"),
    [
        *(("tar", form) for form in ("ustar", "gnu", "posix", "oldgnu")),
        *(("tarfile", form) for form in ("ustar", "gnu", "pax")),
        *(("bsdtar", form) for form in ("ustar", "gnutar", "pax")),
    ],
)
def test_what_a_tool_packed_comes_out_as_it_was(
    sandbox: Sandbox, source: Path, tool: str, form: str, shape: str
) -> None:
    if form != "ustar":
        deepen(source)
    data = packed_by(tool, form, shape, source, source.parent / "app.tar")
    found = run(sandbox, data)
    assert found.top == {"dot": "", "directory": "app", "nested": "source/app"}[shape]
    fractions = form in ("posix", "pax")
    if tool == "tarfile" and fractions:  # which takes them from a float
        for path in source.rglob("*"):
            mtime = int(Decimal(str(path.lstat().st_mtime)) * 10**9)
            if not path.is_symlink():
                os.utime(path, ns=(0, mtime))
    expected = facts(source, as_unpacked=True, fractions=fractions)
    got = facts(Path(sandbox.target, found.top), as_unpacked=False, fractions=True)
    assert got.keys() == expected.keys()
    for name, fact in expected.items():
        assert got[name] == fact, name
    kinds = [fact[0] for fact in expected.values()]
    assert found.size == sum(
        len(fact[3]) for name, fact in expected.items() if fact[0] == "file" and fact[4] == name
    )
    assert found.files >= len(kinds)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(sandbox: Sandbox, source: Path, umask: int) -> None:
    data = packed_by("tarfile", "gnu", "dot", source, source.parent / "app.tar")
    before = os.umask(umask)
    try:
        run(sandbox, data)
    finally:
        os.umask(before)
    expected = facts(source, as_unpacked=True, fractions=False)
    assert facts(Path(sandbox.target), as_unpacked=False, fractions=True) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_everything_belongs_to_the_owner(sandbox: Sandbox, source: Path) -> None:
    data = packed_by("tarfile", "pax", "directory", source, source.parent / "app.tar")
    found = run(sandbox, data, owner=(12345, 54321))
    tree = Path(sandbox.target, found.top)
    owners = {(p.lstat().st_uid, p.lstat().st_gid) for p in (tree, *tree.rglob("*"))}
    assert owners == {(12345, 54321)}
    modes = {p.name: stat.S_IMODE(p.lstat().st_mode) for p in tree.rglob("mode*")}
    assert modes["mode755"] == 0o755


def test_nobody_else_may_claim_ownership(sandbox: Sandbox) -> None:
    """The owner that an archive names is a number on another machine."""
    data = virtualenv(member("theirs", b"x", uid=12345, gid=54321, uname="shop", gname="shop"))
    run(sandbox, data)
    status = os.lstat(os.path.join(sandbox.target, "theirs"))
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())


def noise(size: int) -> bytes:
    """Bytes that do not compress, the same ones every time."""
    return random.Random(size).randbytes(size)


def xz_that_ends_on_a_boundary() -> bytes:
    """An xz whose content fills whole pieces, and whose last bytes come with the next read."""
    size = 100_000
    for _ in range(50):
        tar = virtualenv(member("noise", noise(size)))
        made = lzma.compress(tar + bytes(-len(tar) % (1 << 20)))
        beyond = len(made) - (128 << 10) - 12
        if abs(beyond) <= 8:
            break
        size -= beyond
    return made


ACCEPTED: dict[str, Callable[[], bytes]] = {
    "as-it-is": virtualenv,
    "below-a-directory": lambda: archive(*virtualenv_members("app/")),
    "below-three-directories": lambda: archive(*virtualenv_members("srv/app/x/")),
    "below-directories-with-dots": lambda: archive(*virtualenv_members("./srv/./app/")),
    "explicit-top": lambda: archive(directory("./"), *virtualenv_members("./")),
    "directory-behind-its-files": lambda: virtualenv(member("a/b", b"x"), directory("a/")),
    "no-directories-at-all": lambda: archive(
        *(m for m in virtualenv_members() if m[156:157] != DIRECTORY)
    ),
    "links-first": lambda: archive(*sorted(virtualenv_members(), key=lambda m: m[156:157] != LINK)),
    "reversed": lambda: archive(*reversed(virtualenv_members())),
    "more-zeros": lambda: virtualenv(end=bytes(10240)),
    "global-comment": lambda: virtualenv(first=pax({"comment": "a commit"}, b"g")),
    "other-pax-records": lambda: virtualenv(
        pax({"SCHILY.xattr.user.x": "y", "atime": "1.5", "LIBARCHIVE.creationtime": "1"}),
        member("more"),
    ),
    "pax-size-twice-the-same": lambda: virtualenv(pax({"size": "3"}), member("more", b"abc")),
    "name-with-dots": lambda: virtualenv(member("..more/...x/.y/z..", b"x")),
    "same-name-elsewhere": lambda: virtualenv(member("a/more"), member("b/MORE")),
    "gnu-long-name-that-is-short": lambda: virtualenv(gnu_long("more"), member("x", b"y")),
    "gnu-long-target-of-a-file": lambda: virtualenv(gnu_long("x", b"K"), member("more", b"y")),
    "owner-in-binary": lambda: virtualenv(member("more", b"y", uid=base256(1 << 31, 8))),
    "size-in-binary": lambda: virtualenv(member("more", b"y", size=base256(1))),
    "numbers-with-spaces": lambda: virtualenv(
        member("more", b"y", size=b"          1 ", mode=b"   644 ")
    ),
    "old-directory": lambda: virtualenv(header("more/", b"\0")),
    "old-file": lambda: virtualenv(member("more", b"x", b"\0")),
    "directory-with-bits": lambda: virtualenv(directory("more/", mode=0o7777)),
    "directory-that-nobody-may-enter": lambda: virtualenv(
        directory("more/", mode=0), member("more/x", b"x")
    ),
    "deep-but-not-too-deep": lambda: virtualenv(member("d/" * 40 + "x", b"x")),
    "component-of-255": lambda: virtualenv(member("c" * 255, b"x")),
    "hard-link": lambda: virtualenv(hard_link("more", "./bin/activate")),
    "hard-link-to-a-hard-link-is-a-file": lambda: virtualenv(
        member("one", b"x"), hard_link("two", "one"), hard_link("three", "one")
    ),
    "link-to-the-top": lambda: virtualenv(link("lib/top", "..")),
    "link-to-itself-by-the-top": lambda: virtualenv(link("more", ".")),
    "link-down-and-up": lambda: virtualenv(link("more", "lib/../bin/../lib64/..")),
    "link-to-a-link-of-the-interpreter": lambda: virtualenv(link("more", "bin/python")),
    "link-to-the-old-prefix": lambda: virtualenv(link("more", OLD_PREFIX)),
    "link-into-the-old-prefix": lambda: virtualenv(link("more", f"{OLD_PREFIX}/lib64/x")),
    "link-dangling": lambda: virtualenv(link("more", "nothing/here")),
    "interpreter-of-pypy": lambda: virtualenv(link("bin/pypy3.9", "/opt/pypy/bin/pypy3.9")),
    "library-of-python-2": lambda: archive(
        *virtualenv_members(version="2.7"),
        link("lib/python2.7/os.py", "/usr/lib/python2.7/os.py"),
        link("lib/python2.7/encodings", "/usr/lib/python2.7/encodings"),
    ),
    "gzip": lambda: gzip.compress(virtualenv()),
    "gzip-of-many-members": lambda: b"".join(
        gzip.compress(part) for part in re.findall(b"(?s).{1,700}", virtualenv())
    ),
    "gzip-of-empty-members": lambda: gzip.compress(b"") * 3 + gzip.compress(virtualenv()),
    "gzip-with-a-name": lambda: b"\x1f\x8b\x08\x08" + bytes(6) + b"app.tar\0" + raw_gzip(),
    "gzip-and-zeros": lambda: gzip.compress(virtualenv()) + bytes(3000),
    "xz-and-zeros": lambda: lzma.compress(virtualenv()) + bytes(4),
    "xz-of-two-streams": lambda: (
        lzma.compress(virtualenv()[:999]) + lzma.compress(virtualenv()[999:])
    ),
    "xz-that-ends-on-a-boundary": xz_that_ends_on_a_boundary,
    "zstd-of-two-frames": lambda: (
        COMPRESSORS["tar.zst"](virtualenv()[:999]) + COMPRESSORS["tar.zst"](virtualenv()[999:])
    ),
}


def raw_gzip() -> bytes:
    """What stands in a gzip behind its header."""
    return gzip.compress(virtualenv())[10:]


@pytest.mark.parametrize("build", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_an_unusual_archive_is_taken(sandbox: Sandbox, build: Callable[[], bytes]) -> None:
    found = run(sandbox, build())
    top = os.path.join(sandbox.target, found.top)
    assert leaving_links(top) == []
    for path, directories, names in os.walk(top):
        for name in (*directories, *names):
            status = os.lstat(os.path.join(path, name))
            if not stat.S_ISLNK(status.st_mode):
                assert not status.st_mode & 0o7022, name
    with open(os.path.join(top, "pyvenv.cfg"), "rb") as file:
        assert file.read().startswith(b"home = /usr/bin\n")
    if os.path.islink(os.path.join(top, "bin/python3")):
        assert os.readlink(os.path.join(top, "bin/python")) == "python3"
    if not found.top and os.path.isfile(os.path.join(top, MODULE)):
        assert os.lstat(os.path.join(top, MODULE)).st_mtime == MTIME


def test_every_accepted_archive_is_taken_by_gnu_tar_too(sandbox: Sandbox) -> None:
    """So that what is taken here is not a reading of our own: the same names come out."""
    program = shutil.which("tar")
    if program is None or b"GNU" not in subprocess.check_output([program, "--version"]):
        pytest.skip("tar is not GNU's on this machine")
    theirs = os.path.join(sandbox.root, "theirs")
    for name, build in ACCEPTED.items():
        if "zstd" in name and shutil.which("zstd") is None:
            continue
        if (
            name == "directory-that-nobody-may-enter"
        ):  # they leave it so, and it cannot be looked at
            continue
        data = build()
        sandbox.reset()
        run(sandbox, data)
        remove(theirs)
        os.mkdir(theirs)
        done = subprocess.run(
            [program, "-xf", sandbox.put(data), "-C", theirs, "--no-same-owner"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert done.returncode == 0, (name, done.stderr)
        assert entries(sandbox.target) == entries(theirs), name


def entries(tree: str) -> dict[str, str]:
    """The paths in a tree, each with its link's target; those to the old prefix are as ours."""
    found = {}
    for path, directories, names in os.walk(tree):
        for name in (*directories, *names):
            full = os.path.join(path, name)
            target = os.readlink(full) if os.path.islink(full) else ""
            if target.startswith(OLD_PREFIX):
                target = os.path.relpath(target, path.replace(tree, OLD_PREFIX, 1))
            found[os.path.relpath(full, tree)] = target
    return found


@pytest.mark.parametrize(
    "text", ["1.5", "1.000000001", "1600000000.123456789", "0", "7.1234567891"]
)
def test_fractions_of_a_second_are_kept(sandbox: Sandbox, text: str) -> None:
    run(sandbox, virtualenv(pax({"mtime": text}), member("more"), directory("dir/")))
    seconds, _, rest = text.partition(".")
    wanted = int(seconds) * 10**9 + int(rest[:9].ljust(9, "0"))
    assert os.lstat(os.path.join(sandbox.target, "more")).st_mtime_ns == wanted
    assert os.lstat(os.path.join(sandbox.target, "dir")).st_mtime_ns == MTIME * 10**9


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("more", ""),
        ("more", "/bin"),
        ("more", "/lib64/x"),
        ("bin/more", "/lib/x"),
        ("a/b/c/more", ""),
        ("a/b/c/more", "/a/b"),
    ],
)
@pytest.mark.parametrize("top", ["", "srv/app/"])
def test_links_to_the_old_place_lead_to_the_same_here(
    sandbox: Sandbox, name: str, target: str, top: str
) -> None:
    """Until it is relocated they would lead wherever the archive says that it was built."""
    run(sandbox, archive(*virtualenv_members(top), link(f"{top}{name}", OLD_PREFIX + target)))
    made = os.path.join(sandbox.target, top, name)
    assert not os.path.isabs(os.readlink(made))
    inside = os.path.realpath(os.path.join(sandbox.target, top) + target)
    assert os.path.realpath(made) == inside


def test_progress_is_told(sandbox: Sandbox) -> None:
    told: list[tuple[int, int]] = []
    many = [member(f"m{n}", b"x" * 10) for n in range(2000)]
    found = run(sandbox, virtualenv(*many), progress=lambda files, size: told.append((files, size)))
    assert told == sorted(told)
    assert told
    assert told[-1] <= (found.files, found.size)

"""Archives that nobody thought of: good and hostile ones, mutated at random.

Each of them is refused in a sentence, or unpacked to just what Python's tarfile finds in it; and
whatever happens, nothing outside the directory is touched, no link leaves, and nothing hangs.

Variables: `RELOCATE_FUZZ_SECONDS` is how long the slow test runs (default 180), and
`RELOCATE_FUZZ_SEED` the seed that a failure has told.
"""

from __future__ import annotations

import gzip
import io
import os
import posixpath
import stat
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from random import Random

import pytest

from relocate_core.bundles.limits import Limits
from relocate_core.bundles.unpack import unpack
from relocate_core.errors import RelocateError
from tests.functional.bundles.test_hostile_archives import ACCEPTED, ATTACKS
from tests.support.archives import (
    BLOCK,
    COMPRESSORS,
    FIELDS,
    Sandbox,
    base256,
    checksum,
    leaving_links,
    links,
    record,
    set_field,
    virtualenv,
)
from tests.support.fuzz import often

LIMITS = Limits(files=3000, size=8 << 20, ratio=200)
SECONDS = 30  # that one archive may take, on a busy machine

NAMES = (
    *(b"a", b"a/b", b"a/b/c", b"A", b"a/B", b"..", b"../a", b"a/..", b"/", b"/a", b".", b"./", b""),
    *(b"bin", b"bin/", b"bin/python", b"bin/python3", b"bin/python3/x", b"bin/activate", b"lib"),
    *(b"lib64", b"lib64/a", b"lib/python3.11", b"pyvenv.cfg", b"pyvenv.cfg/", b"evil", b"evil/x"),
    *(
        b"../../victim",
        b"../to-victims/file",
        b"lib/../../victim",
        b"a//b/./",
        b"\xc3\xa9",
        b"\xff",
    ),
    *(b"/usr/bin/python3.11", b"/var/build/shop", b"/var/build/shop/../x", b"/etc/passwd", b"\n"),
)
NUMBERS = (
    *(b"", b"0", b"1", b"777", b"1000", b"1001", b"2000", b"10000000000", b"77777777777", b"-1"),
    *(b"8", b"x", b" 1 ", b"1\0002", b"00000000777777", base256(1), base256(512), base256(-512)),
    *(base256(1 << 40), base256(1 << 63), base256((1 << 88) - 1), b"\xff" * 12, b"\x80" * 12),
)
TEXTS: Mapping[str, tuple[bytes, ...]] = {
    **dict.fromkeys(("name", "target", "prefix"), NAMES),
    **dict.fromkeys(("size", "mode", "mtime", "uid"), NUMBERS),
    "mode": (*NUMBERS, b"0000755", b"0004755", b"0000000", b"0007777"),
    "kind": tuple(bytes([byte]) for byte in b"\00123456789xgLKSVMDNXAZ\xff"),
    "magic": (b"ustar\x0000", b"ustar  \0", b"ustar\0  ", b"", b"ustar", b"USTAR\x0000"),
}
KEYS = ("path", "linkpath", "size", "mtime", "comment", "GNU.sparse.name", "hdrcharset", "SCHILY.x")


# -- mutations: each takes the blocks of an archive and changes some ------------------------------

Blocks = list[bytes]
Mutation = Callable[[Random, Blocks], None]


def headers(blocks: Blocks) -> list[int]:
    """Where there is a header: any block whose checksum is right."""
    start, length = FIELDS["chksum"]
    return [
        number
        for number, block in enumerate(blocks)
        if len(block) == BLOCK and block[start : start + length] == checksum(block)
    ]


def members(blocks: Blocks) -> list[Blocks]:
    """The blocks of each member: from one header to the next."""
    starts = [*headers(blocks), len(blocks)]
    return [blocks[start:end] for start, end in zip(starts, starts[1:])]


def flip_bits(random: Random, blocks: Blocks) -> None:
    number = random.randrange(len(blocks))
    block = bytearray(blocks[number])
    for _ in range(random.choice((1, 1, 2, 9))):
        if block:
            block[random.randrange(len(block))] ^= 1 << random.randrange(8)
    blocks[number] = bytes(block)


def flip_bits_and_repair(random: Random, blocks: Blocks) -> None:
    places = headers(blocks)
    if places:
        number = random.choice(places)
        block = bytearray(blocks[number])
        for _ in range(random.choice((1, 1, 2))):
            block[random.randrange(len(block))] ^= 1 << random.randrange(8)
        blocks[number] = set_field(bytes(block), "chksum", checksum(bytes(block)), repair=False)


def edit_field(random: Random, blocks: Blocks) -> None:
    places = headers(blocks)
    if places:
        number = random.choice(places)
        field = random.choice(list(TEXTS))
        value = random.choice(TEXTS[field])
        blocks[number] = set_field(blocks[number], field, value, repair=random.random() < 0.97)


def copy_field(random: Random, blocks: Blocks) -> None:
    """Call one member as another, or let a link point to it."""
    places = headers(blocks)
    if places:
        start, length = FIELDS["name"]
        name = blocks[random.choice(places)][start : start + length]
        number = random.choice(places)
        blocks[number] = set_field(blocks[number], random.choice(("name", "target")), name)


def swap_blocks(random: Random, blocks: Blocks) -> None:
    one, two = random.randrange(len(blocks)), random.randrange(len(blocks))
    blocks[one], blocks[two] = blocks[two], blocks[one]


def duplicate_block(random: Random, blocks: Blocks) -> None:
    blocks.insert(random.randrange(len(blocks) + 1), random.choice(blocks))


def delete_block(random: Random, blocks: Blocks) -> None:
    del blocks[random.randrange(len(blocks))]


def insert_zeros(random: Random, blocks: Blocks) -> None:
    place = random.randrange(len(blocks) + 1)
    blocks[place:place] = [bytes(BLOCK)] * random.choice((1, 1, 2, 3))


def truncate(random: Random, blocks: Blocks) -> None:
    del blocks[random.randrange(1, len(blocks) + 1) :]
    blocks[-1] = blocks[-1][: random.choice((BLOCK, BLOCK, 1, 511, 100))]


def reorder(random: Random, blocks: Blocks) -> None:
    parts = members(blocks)
    if len(parts) > 1:
        end = parts[-1][-2:]
        parts[-1] = parts[-1][:-2]
        if random.random() < 0.5:
            random.shuffle(parts)
        else:
            moved = parts.pop(random.randrange(len(parts)))
            parts.insert(random.randrange(len(parts) + 1), moved)
        blocks[:] = [block for part in (*parts, end) for block in part]


def duplicate_member(random: Random, blocks: Blocks) -> None:
    parts = members(blocks)
    if parts:
        again = random.choice(parts)
        place = random.choice(headers(blocks))
        blocks[place:place] = again


def delete_member(random: Random, blocks: Blocks) -> None:
    parts = members(blocks)
    if len(parts) > 2:
        parts.pop(random.randrange(len(parts) - 1))
        blocks[:] = [block for part in parts for block in part]


def edit_pax(random: Random, blocks: Blocks) -> None:
    """Change the records of an extended header, or make one of any member."""
    places = headers(blocks)
    start = FIELDS["kind"][0]
    extended = [n for n in places if blocks[n][start : start + 1] in (b"x", b"g", b"L", b"K")]
    data = b"".join(
        record(
            random.choice(KEYS),
            random.choice(random.choice((NAMES, NUMBERS, (b"1.5", b"1e9", b"nan", b"-1.5")))),
        )
        for _ in range(random.choice((1, 1, 1, 2, 3)))
    )
    if random.random() < 0.3:
        mangled = bytearray(data)
        mangled[random.randrange(len(mangled))] = random.randrange(256)
        data = bytes(mangled)
    if not places:
        return
    body = data.ljust(BLOCK, b"\0")[:BLOCK]
    size = b"%011o" % min(len(data), BLOCK)
    if extended and random.random() < 0.5:
        number = random.choice(extended)
        if number + 1 < len(blocks):
            blocks[number] = set_field(blocks[number], "size", size)
            blocks[number + 1] = body
        return
    number = random.choice(places)
    kind = random.choice((b"x", b"x", b"x", b"g", b"L", b"K"))
    made = set_field(set_field(blocks[number], "kind", kind), "size", size)
    if kind in (b"L", b"K"):
        body = random.choice(NAMES).ljust(BLOCK, b"\0")
        made = set_field(made, "size", b"%011o" % random.choice((1, 2, 5, 20, BLOCK)))
    blocks[number:number] = [made, body]


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    *([flip_bits_and_repair] * 2),
    *([edit_field] * 5),
    *([copy_field] * 3),
    swap_blocks,
    duplicate_block,
    delete_block,
    insert_zeros,
    truncate,
    *([reorder] * 3),
    duplicate_member,
    *([delete_member] * 2),
    *([edit_pax] * 3),
)


def mutated(random: Random, corpus: list[bytes]) -> bytes:
    """One archive of the corpus, or the members of two, with a few mutations; then compressed."""
    data = random.choice(corpus)
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)] or [b""]
    if random.random() < 0.2:
        other = random.choice(corpus)
        more = members([other[at : at + BLOCK] for at in range(0, len(other), BLOCK)])
        if more:
            blocks[:-2] += [block for part in random.sample(more, 1) for block in part]
    for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        if blocks:
            random.choice(MUTATIONS)(random, blocks)
    data = b"".join(blocks)
    form = random.choices(list(COMPRESSORS), (90, 6, 2, 2, 0))[0]
    if form != "tar":
        data = COMPRESSORS[form](data)
        if random.random() < 0.5 and data:
            damaged = bytearray(data)
            damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
            data = bytes(damaged)[: random.choice((len(data), len(data), len(data) // 2))]
    return data


# -- what must hold -------------------------------------------------------------------------------


def fuzz(sandbox: Sandbox, seed: str, seconds: float, cases: int = 1 << 62) -> tuple[int, int]:
    """Unpack mutated archives for some time; return how many there were, and how many were taken.

    Every case has a random generator of its own, so that one can be had without those before it.
    """
    corpus = [pack() for name, pack in ACCEPTED.items() if "z" not in name]
    corpus += [virtualenv()] * 60  # so that there is a good one behind about half of them
    corpus += [build(sandbox) for name, (build, _) in ATTACKS.items() if "stream" not in name]
    corpus = [data for data in corpus if len(data) < 200_000]
    until = time.monotonic() + seconds
    taken = case = 0
    while case < cases and time.monotonic() < until:
        data = mutated(Random(f"{seed} {case}"), corpus)
        where = f"RELOCATE_FUZZ_SEED={seed}, case {case}"
        taken += unpacked(sandbox, data, where)
        case += 1
    return case, taken


def unpacked(sandbox: Sandbox, data: bytes, where: str) -> bool:
    """Unpack an archive and look at what became of it; return whether it was taken."""
    packed = sandbox.put(data)
    sandbox.reset()
    started = time.monotonic()
    try:
        with sandbox.watched() as target:
            try:
                found = unpack(packed, target, limits=LIMITS)
            except RelocateError as refusal:
                sentence = str(refusal)
                assert sentence.startswith("cannot unpack "), where
                assert sentence.isprintable(), where
                assert links(sandbox.target) == [], where
                return False
    except Exception as error:
        kept = f"{packed}.failed"
        with open(kept, "wb") as file:
            file.write(data)
        raise AssertionError(f"{where}: {error!r}; the archive is kept as {kept}") from error
    finally:
        assert time.monotonic() - started < SECONDS, where
    assert leaving_links(os.path.join(sandbox.target, found.top)) == [], where
    entries = dict(on_disk(sandbox.target))
    assert all(not mode & 0o7022 for kind, mode in entries.values() if kind != "link"), where
    theirs = in_tarfile(data)
    if theirs is not None:
        ours = {path: kind for path, (kind, _) in entries.items()}
        for path in list(theirs):  # directories that are only implied
            while (path := posixpath.dirname(path)) not in ("", "/"):
                theirs.setdefault(path, "directory")
        assert ours == theirs, where
    return True


def on_disk(tree: str) -> Iterator[tuple[str, tuple[str, int]]]:
    """Each path in a tree with its kind and mode."""
    for path, directories, names in os.walk(tree):
        for name in (*directories, *names):
            full = os.path.join(path, name)
            mode = os.lstat(full).st_mode
            kind = "link" if stat.S_ISLNK(mode) else "directory" if stat.S_ISDIR(mode) else "file"
            yield os.path.relpath(full, tree), (kind, stat.S_IMODE(mode))


def in_tarfile(data: bytes) -> dict[str, str] | None:
    """The paths that Python's tarfile finds, with their kinds; None where it is of no help."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    for number in headers(blocks):
        # No device is taken here, while tarfile takes an impossible number for the end.
        for field in ("devmajor", "devminor"):
            blocks[number] = set_field(blocks[number], field, b"0")
    data = b"".join(blocks)
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                if member.type == b"V":  # a volume's label, which tarfile takes for a file
                    continue
                kind = "directory" if member.isdir() else "link" if member.issym() else "file"
                found[posixpath.normpath(member.name)] = kind
    except (tarfile.TarError, ValueError):  # it fails at text that is no UTF-8
        return None
    found.pop(".", None)
    return found


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    """A watched place, all of which can be removed afterwards."""
    made = Sandbox(tmp_path / "sandbox")
    yield made
    made.reset()


def test_a_few_mutations(sandbox: Sandbox) -> None:
    cases, taken = fuzz(sandbox, "the same as ever", 60, cases=300)
    assert cases == 300
    assert taken > 30, "mutations that nothing survives prove little"


@pytest.mark.slow
def test_many_mutations(sandbox: Sandbox) -> None:
    seed = os.environ.get("RELOCATE_FUZZ_SEED") or str(time.time_ns())
    seconds = float(os.environ.get("RELOCATE_FUZZ_SECONDS") or often(30, 180))
    cases, taken = fuzz(sandbox, seed, seconds)
    assert cases
    assert cases < 1000 or taken

"""What Python's own tarfile writes, this reader reads the same - in all three formats."""

from __future__ import annotations

import io
import tarfile
import unicodedata
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relocate_core.archives import tar
from tests.support.archives import END, base256, directory, gnu_long, header, member, pax, set_field
from tests.support.fuzz import examples

FORMATS = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}
KINDS = {
    tarfile.REGTYPE: tar.FILE,
    tarfile.DIRTYPE: tar.DIRECTORY,
    tarfile.SYMTYPE: tar.LINK,
    tarfile.LNKTYPE: tar.HARD_LINK,
}


class Memory:
    """A tar in memory, as the reader takes it."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def take(self, size: int) -> bytes:
        """Exactly that many bytes."""
        taken = self._data.read(size)
        if len(taken) != size:
            raise tar.Refused("it ends too soon")
        return taken

    def rest(self) -> Iterator[bytes]:
        """Everything that is left."""
        yield self._data.read()


def require_members_or_refusal(data: bytes) -> None:
    """Fails where reading does anything but end, or refuse with a sentence for a terminal."""
    said = "nothing"
    try:
        read(data)
    except tar.Refused as refusal:
        said = str(refusal)
    assert said.isprintable()


def read(data: bytes) -> list[tuple[tar.Member, bytes]]:
    """All members, each with its content."""
    source = Memory(data)
    return [(found, source.take(found.size)) for found in tar.members(source)]


def is_plain(name: str) -> bool:
    """Whether a component is one that a name may hold: bytes may have become control characters."""
    return name not in (".", "..") and not any(unicodedata.category(c) == "Cc" for c in name)


# Letters of every kind, and bytes that are no UTF-8; but nothing that a name may not hold.
letters = st.characters(blacklist_categories=("Cc", "Cs"), blacklist_characters="/\0")
foreign = st.lists(st.integers(0x80, 0xFF), min_size=1, max_size=4).map(
    lambda data: bytes(data).decode("utf-8", "surrogateescape")
)
components = st.one_of(
    st.text(letters, min_size=1, max_size=12),
    st.text(letters, min_size=1, max_size=3).map(lambda text: text * 30),
    st.builds(lambda start, end: start + end, st.text(letters, min_size=1, max_size=3), foreign),
).filter(is_plain)
names = st.lists(components, min_size=1, max_size=12).map("/".join)
quarters = st.integers(0, 1 << 34).map(lambda number: number / 4)  # which a float holds exactly


@st.composite
def infos(draw: Any, form: str) -> tuple[tarfile.TarInfo, bytes]:
    """A member as tarfile has it, and its content."""
    info = tarfile.TarInfo(draw(names))
    info.type = draw(st.sampled_from(list(KINDS)))
    info.mtime = draw(quarters if form == "pax" else st.integers(0, (1 << 33) - 1))  # type: ignore[assignment]
    info.uid = draw(st.integers(0, (1 << 21) - 1 if form == "ustar" else 1 << 40))
    info.uname = draw(st.text(letters, max_size=5))
    info.mode = draw(st.integers(0, 0o7777))
    content = b""
    if info.type == tarfile.REGTYPE:
        info.mode &= 0o777
        content = draw(
            st.one_of(
                st.binary(max_size=20),
                st.sampled_from((0, 511, 512, 513, 1024, 5000)).map(lambda size: b"x" * size),
            )
        )
        info.size = len(content)
    elif info.type != tarfile.DIRTYPE:
        info.linkname = draw(names)
    return info, content


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=examples(150), deadline=None)
@given(data=st.data())
def test_it_reads_what_tarfile_writes(form: str, data: st.DataObject) -> None:
    wanted = data.draw(st.lists(infos(form), max_size=6))
    packed = io.BytesIO()
    written = []
    with tarfile.open(fileobj=packed, mode="w", format=FORMATS[form], encoding="utf-8") as archive:
        for info, content in wanted:
            start = packed.tell()
            try:
                archive.addfile(info, io.BytesIO(content))
            except ValueError:  # too long for ustar
                packed.seek(start)
            else:
                written.append((info, content))
    found = read(packed.getvalue())
    assert len(found) == len(written)
    for (info, content), (got, got_content) in zip(written, found):
        assert got.name == info.name
        assert got.kind == KINDS[info.type]
        assert got.mode == info.mode & 0o777
        assert got.mtime == int(Decimal(str(info.mtime)) * 10**9)
        assert got.size == info.size
        assert got.target == info.linkname
        assert got_content == content


@pytest.mark.parametrize("form", ["gnu", "pax"])
@pytest.mark.parametrize("size", [(8 << 30) - 1, 8 << 30, 9 << 30, 1 << 40])
def test_it_reads_sizes_beyond_octal(form: str, size: int) -> None:
    info = tarfile.TarInfo("large")
    info.size = size
    headers = info.tobuf(FORMATS[form], "utf-8", "surrogateescape")
    found = next(tar.members(Memory(headers)))
    assert (found.name, found.size) == ("large", size)


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("a/b", "a/b"),
        ("./a/b", "a/b"),
        ("././a/b", "a/b"),
        (".//a/b", "a/b"),
        ("a//b", "a/b"),
        ("a/./b", "a/b"),
        ("a/.b", "a/.b"),
        ("..a/b..", "..a/b.."),
        (".../b", ".../b"),
        ("a/...", "a/..."),
        (" a/b ", " a/b "),
        ("a\\b", "a\\b"),
        ("-rf", "-rf"),
    ],
)
def test_names_have_one_form(spelled: str, name: str) -> None:
    for data in (
        member(spelled, b"x"),
        gnu_long(spelled) + member("other", b"x"),
        pax({"path": spelled}) + member("other", b"x"),
    ):
        ((found, content),) = read(data + END)
        assert (found.name, content) == (name, b"x")
    ((found, _),) = read(directory(f"{spelled}/") + END)
    assert found.name == name
    ((found, _),) = read(directory(f"{spelled}/.") + END)
    assert found.name == name


@pytest.mark.parametrize("spelled", [".", "./", "./.", ".//", "././"])
def test_the_top_itself_is_a_directory(spelled: str) -> None:
    ((found, _),) = read(directory(spelled) + END)
    assert (found.name, found.kind) == ("", tar.DIRECTORY)


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "./", "..", "../a", "a/..", "a/../b", "./..", ".//..", "a/./../b", "/", "//"),
        *("/a", "//a", "a/", "a//", "a/.", "a/b/", "a\n", "\x01", "a\x7f", "a/\x1b[2J"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str) -> None:
    for data in (
        member(name, b"x"),
        gnu_long(name) + member("other", b"x"),
        pax({"path": name}) + member("other", b"x"),
        member("first") + header("other", b"1", target=name),
        member("first") + gnu_long(name, b"K") + header("other", b"1", target="first"),
        member("first") + pax({"linkpath": name}) + header("other", b"1", target="first"),
    ):
        with pytest.raises(tar.Refused):
            read(data + END)


@given(st.binary(max_size=12))
@settings(max_examples=examples(500))
def test_a_number_is_octal_or_refused(field: bytes) -> None:
    data = header("a", b"5", mtime=field) + END
    try:
        ((found, _),) = read(data)
    except tar.Refused:
        return
    text = field.ljust(12, b"\0")
    if text[0] & 0x80:
        assert found.mtime == int.from_bytes(text[1:], "big") * 10**9
    else:
        assert found.mtime == int(text.strip(b" \0") or b"0", 8) * 10**9


@pytest.mark.parametrize("number", [0, 1, 1 << 33, 1 << 36])
def test_a_number_may_be_binary(number: int) -> None:
    ((found, _),) = read(header("a", b"5", mtime=base256(number)) + END)
    assert found.mtime == number * 10**9


@given(st.integers(0, 511), st.integers(0, 7))
@settings(max_examples=examples(300))
def test_a_flipped_bit_in_a_header_is_never_missed(place: int, bit: int) -> None:
    block = bytearray(header("some/name", size=5, mode=0o644))
    block[place] ^= 1 << bit
    data = bytes(block) + b"12345".ljust(512, b"\0") + END
    try:
        ((found, _),) = read(data)
    except tar.Refused:
        return
    # What ends the checksum may be a NUL or a space; nothing else may be another bit.
    assert 148 <= place < 156
    assert (found.name, found.size) == ("some/name", 5)


@given(st.binary(max_size=2000))
@settings(max_examples=examples(300))
def test_bytes_are_members_or_refused(data: bytes) -> None:
    for source in (data, data + END, member("a") + data + END, pax(data) + member("a") + END):
        require_members_or_refusal(source)


@pytest.mark.parametrize(
    "field", ["name", "mode", "size", "mtime", "kind", "target", "magic", "prefix"]
)
def test_a_header_with_any_field_is_a_member_or_refused(field: str) -> None:
    for value in (b"", b"\xff" * 155, b"\0" * 155, b"/" * 155, b"7" * 155, b"\x80" + b"\0" * 154):
        require_members_or_refusal(set_field(header("a"), field, value) + END)

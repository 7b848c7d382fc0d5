"""References that cannot be seen in a file's bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from pathlib import Path

import pytest

from relocate_core.relocation.hidden import may_hide, reference_inside

TEXT = b"PLACE = '/srv/app/share/x'\n" * 9
OTHER = b"PLACE = '/srv/other/share'\n" * 9


def zipped(content: bytes, name: str = "__main__.py", head: bytes = b"") -> bytes:
    stream = io.BytesIO()
    stream.write(head)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("first.py", b"pass\n")
        archive.writestr(name, content)
    return stream.getvalue()


FORMS = {
    "zip": zipped,
    "zip-application": lambda data: zipped(data, head=b"#!/usr/bin/env python3\n"),
    "wheel-in-a-zip": lambda data: zipped(zipped(data), name="x.whl"),
    "gzip": gzip.compress,
    "gzip-twice": lambda data: gzip.compress(gzip.compress(data)),
    "zip-in-gzip": lambda data: gzip.compress(zipped(data)),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zlib": zlib.compress,
    "utf-16": lambda data: data.decode().encode("utf-16"),
    "utf-16-be": lambda data: ("\ufeff" + data.decode()).encode("utf-16-be"),
    "utf-32": lambda data: data.decode().encode("utf-32"),
    "utf-32-be": lambda data: ("\ufeff" + data.decode()).encode("utf-32-be"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_hidden_reference_is_found(form: str) -> None:
    data = FORMS[form](TEXT)
    assert b"/srv/app" not in data
    assert may_hide(data[0], in_packages=False)
    assert may_hide(data[0], in_packages=True) == (form != "zip-application")
    assert reference_inside(io.BytesIO(data), (b"/srv/app",))
    assert reference_inside(io.BytesIO(FORMS[form](OTHER)), (b"/srv/app",)) is None


@pytest.mark.parametrize("form", FORMS)
def test_a_damaged_file_hides_nothing(form: str) -> None:
    data = FORMS[form](TEXT)
    for size in range(0, len(data), 31):
        reference_inside(io.BytesIO(data[:size]), (b"/srv/app",))


@pytest.mark.parametrize("data", [b"", b"x", b"x^2 + 1\n", b"]\n", b"P\n", b"#!/bin/sh\n", b"\0"])
def test_what_only_begins_alike(data: bytes, tmp_path: Path) -> None:
    assert reference_inside(io.BytesIO(data), (b"/srv/app",)) is None

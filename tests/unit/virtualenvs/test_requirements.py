"""Requirements and their markers, as the metadata of distributions has them."""

from __future__ import annotations

import pytest

from relocate_core.virtualenvs.requirements import Requirement, parse

HERE = {
    "python_version": "3.11",
    "python_full_version": "3.11.2",
    "sys_platform": "linux",
    "platform_machine": "x86_64",
    "implementation_name": "cpython",
}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Shop", Requirement("shop", frozenset(), "")),
        ("my_shop.web [A, b_c] >=2,<3", Requirement("my-shop-web", frozenset({"a", "b-c"}), "")),
        ("shop (>=2)", Requirement("shop", frozenset(), "")),
        ("shop==2 --hash=sha256:00", Requirement("shop", frozenset(), "")),
        ("shop @ https://h/a;b.whl", Requirement("shop", frozenset(), "")),
        ("shop@ file:///a.whl ; x", Requirement("shop", frozenset(), " x")),
        ("./shop", None),
        ("https://host/shop-1.0.tar.gz", None),
        ("--no-binary shop", None),
        ("shop-1.0.whl/x", None),
    ],
)
def test_a_requirement_is_read(text: str, wanted: Requirement | None) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize(
    ("marker", "applies"),
    [
        ("python_version < '3.9'", False),
        ("python_version >= '3.9'", True),
        ("'3.9' <= python_version", True),
        ("python_version == '3.*'", True),
        ("python_version != '3.11.*'", False),
        ("python_full_version > '3.11.10'", False),
        ("sys_platform == 'win32' or (platform_machine in 'x86_64 i686')", True),
        ("sys_platform == 'win32' and python_version > '3'", False),
        ("extra == 'Web_A'", True),
        ("extra == 'other'", False),
        ("python_version ~= '3.12'", True),  # not read: so it counts
        ("nonsense == '1'", True),
        ("(" * 5000, True),
    ],
)
def test_a_marker_is_evaluated(marker: str, applies: bool) -> None:
    assert Requirement("shop", frozenset(), marker).applies(HERE, ["web-a"]) == applies

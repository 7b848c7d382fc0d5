"""What work returns, as plain values."""

from __future__ import annotations

import json
from dataclasses import dataclass

from relocate_core.progress import Report


@dataclass(frozen=True)
class Part:
    name: str


@dataclass(frozen=True)
class Whole(Report):
    parts: tuple[Part, ...]
    counts: dict[str, int]


def test_a_report_is_plain_values_all_the_way_down() -> None:
    plain = Whole((Part("one"), Part("two")), {"files": 2}).as_dict()
    assert plain == {"parts": [{"name": "one"}, {"name": "two"}], "counts": {"files": 2}}
    assert json.loads(json.dumps(plain)) == plain

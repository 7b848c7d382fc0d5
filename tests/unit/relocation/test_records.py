"""What the rows of a RECORD are searched for by."""

from __future__ import annotations

import csv
import io
import os

from hypothesis import example, given, settings
from hypothesis import strategies as st

from relocate_core.relocation.records import _mark
from tests.support.fuzz import examples

NAMES = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0/\r\n"), min_size=1
)


@settings(max_examples=examples(200))
@example("bin", 'a"b.py')
@example("shop", 'a"b.py')
@example("shop", '"')
@given(st.sampled_from(["bin", "shop"]), NAMES)
def test_a_row_has_the_mark_of_the_path_that_it_lists(directory: str, name: str) -> None:
    listed = f"../../../bin/{name}" if directory == "bin" else f"{directory}/{name}"
    row = io.StringIO()
    csv.writer(row).writerow([listed, "sha256=xyz", "3"])
    assert _mark(f"{directory}/{name}") in os.fsencode(row.getvalue())

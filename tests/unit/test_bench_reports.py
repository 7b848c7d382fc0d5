"""What the benches make of what they have measured: how noisy it was, a comparison, a picture."""

from __future__ import annotations

import json
import platform
import re
import socket
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import compare
import plots
import pytest
import support

CHECKOUT = Path(__file__).resolve().parents[2]
OURS, TAR = [1.0, 1.02, 1.04, 1.01, 1.03], [2.0, 2.1, 2.05, 1.95, 2.2]


def kept(directory: Path, **runs: list[float]) -> Path:
    """A directory with the results of a bench."""
    report = support.Report("")
    times = {name: support.Times(one) for name, one in runs.items()}
    report.add("deploy", "Deploying <all>", times, ["tar"])
    known: dict[str, Any] = {"machine": support.machine(), "quick": False}
    known |= {"noise": support.noise(report.results), "results": report.results}
    directory.mkdir()
    (directory / "deploy.json").write_text(json.dumps(known))
    return directory


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ([one * 0.8 for one in OURS], "| 0.80 | "),
        ([one * 0.8 for one in OURS], "| faster |"),
        ([one * 1.3 for one in OURS], "| slower |"),
        ([one * 1.01 for one in OURS], "| no difference shown |"),
        ([0.5, 0.6], "| faster, by few runs |"),
    ],
)
def test_a_change(tmp_path: Path, after: list[float], words: str) -> None:
    places = (kept(tmp_path / "1", ours=OURS, tar=TAR), kept(tmp_path / "2", ours=after, tar=TAR))
    rows = {
        line.split("|")[1].strip(): line
        for line in compare.table(*places).splitlines()
        if "|" in line
    }
    assert words in rows["ours"]
    assert rows["tar (not ours)"].endswith("| 1.00 | 0.93 to 1.08 | no difference shown |")


def test_what_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.json").write_text("[1]")
    for place in (tmp_path, tmp_path / "wrong.json", tmp_path / "nothing"):
        assert compare.main([str(place), str(place)]) == 1
        assert f"{place} has no results of a bench" in capsys.readouterr().err


def test_noise() -> None:
    results = [{"runs": {"ours": [1.0, 1.1, 1.0], "tar": [2.0, 3.0, 2.0], "once": [1.0]}}]
    sentence = "Noise: runs of the same were 30% of their median apart"
    assert support.how_noisy(support.noise(results)).startswith(sentence)
    assert "at most 50% (tar)" in support.how_noisy(support.noise(results))
    assert "not known" in support.how_noisy(support.noise([]))


def test_a_picture_names_the_machine_and_no_name_of_it(tmp_path: Path) -> None:
    known = json.loads((kept(tmp_path / "1", ours=OURS, tar=TAR) / "deploy.json").read_text())
    picture = plots.plot(known["results"][0], known)
    text = " ".join(ElementTree.fromstring(picture).itertext())
    for word in ("Deploying <all>", "1.02 s", "2.05 s", platform.release(), "Medians of 5 runs"):
        assert word in text
    for name in (socket.gethostname(), str(CHECKOUT)):
        assert not re.search(rf"\b{re.escape(name)}\b", picture)

"""The site that `make docs` builds: without warnings, its links alive, readable on a phone."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest

from tests.support.minions import CHECKOUT

pytestmark = pytest.mark.slow

PAGES = (
    "index.html",
    "first-deploy.html",
    "benchmarks.html",
    "reference/virtualenv_relocated.html",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 375
"""Pixels that a small phone has."""
CONTRAST = 4.5
"""What WCAG asks of text of this size."""

# A page in a frame as wide as a phone; what is wrong with it is written into the frame's parent.
FRAME = f"""<!doctype html><iframe src="PAGE" width="{WIDTH}" height="800"></iframe><pre></pre>
<script>
const channels = color => color.match(/[\\d.]+/g).map(Number);
function luminance(color) {{
  const [r, g, b] = channels(color).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}}
function background(node, view) {{
  for (; node; node = node.parentElement) {{
    const color = view.getComputedStyle(node).backgroundColor;
    if ((channels(color)[3] ?? 1) === 1) return color;
  }}
  return "rgb(255, 255, 255)";
}}
document.querySelector("iframe").onload = event => {{
  const view = event.target.contentWindow, page = view.document, found = {{blocks: 0, faint: []}};
  found.width = page.documentElement.scrollWidth;
  for (const theme of ["light", "dark"]) {{
    page.body.dataset.theme = theme;
    for (const span of page.querySelectorAll("pre, pre span")) {{
      found.blocks += span.tagName === "PRE";
      if (!span.textContent.trim()) continue;
      const style = view.getComputedStyle(span);
      const [high, low] = [luminance(style.color), luminance(background(span, view))]
        .sort((a, b) => b - a);
      const ratio = (high + 0.05) / (low + 0.05);
      if (ratio < {CONTRAST} || parseFloat(style.fontSize) < 11)
        found.faint.push([theme, span.textContent.slice(0, 40), ratio, style.fontSize]);
    }}
  }}
  document.querySelector("pre").textContent = "MEASURED" + JSON.stringify(found) + "END";
}};
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does it."""
    for module in ("furo", "myst_parser", "sphinx"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install '.[docs]'")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(CHECKOUT / "docs"), out],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


def test_local_links_are_alive(site: Path) -> None:
    known: dict[Path, set[str]] = {}
    dead = []
    for page in sorted(site.rglob("*.html")):
        for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text()):
            place, anchor = urldefrag(unescape(link))
            if re.match(r"\w+:|//", place):
                continue
            target = page.parent / unquote(place.partition("?")[0]) if place else page
            if target.is_dir():
                target /= "index.html"
            if target not in known and target.is_file():
                text = target.read_text() if target.suffix == ".html" else ""
                known[target] = set(re.findall(r'id="([^"]+)"', text))
            wanted = unquote(anchor) if target.suffix == ".html" else ""
            if target not in known or (wanted and wanted not in known[target]):
                dead.append((str(page.relative_to(site)), link))
    assert len(known) > 30
    assert dead == []


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served: a browser reads no frame of a file."""
    handler = functools.partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.parametrize("page", PAGES)
def test_a_page_on_a_small_screen(site: Path, address: str, page: str, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    frame = site / f"frame-{page.replace('/', '-')}"
    frame.write_text(FRAME.replace("PAGE", f"/{page}"))
    done = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            f"{address}/{frame.name}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    frame.unlink()
    measured = re.search("MEASURED(.*)END", done.stdout)
    assert measured, done.stdout + done.stderr
    found = json.loads(unescape(measured[1]))
    assert found["width"] <= WIDTH
    assert found["blocks"] > 0 or page == "index.html"
    assert found["faint"] == []

"""Deploy a release that brings its Python, by the Python that stands for Salt's own.

    deploy.py CORE APP PYTHON RELEASE

The bundles are trusted by the hashes beside them. Each problem that was found is a line.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main(core: str, app: str, python: str, release: str) -> int:
    sys.path.insert(0, core)
    from relocate_core import PythonBundle, RelocateError, check, publish

    def hashed(archive: str) -> dict[str, str]:
        return {"sha256": Path(f"{archive}.sha256").read_text().split()[0]}

    begun = time.monotonic()
    try:
        done = publish(
            app, release, python=PythonBundle(python, hashed(python)), digests=hashed(app)
        )
        verdict = check(release, deep=True)
    except RelocateError as error:
        print(f"refused: {error}")
        return 1
    for problem in done.problems:
        print(f"problem: {problem['file']}: {problem['reason']}")
    for found in verdict.problems:
        print(f"check: {found.file}: {found.reason}")
    seconds = time.monotonic() - begun
    print(
        f"{release} on {done.python}, deployed in {seconds:.1f} s by Python "
        f"{sys.version.split()[0]}, {len(done.problems)} problems"
    )
    return 1 if verdict.problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Programs that a release runs on its own Python, which may be as old as 3.6; no core is there.

Each is read as text and handed over by `-c`. The request is JSON in the open file whose number is
in the environment variable `VIRTUALENV_TOOLS_REQUEST`, and the answer is put in its place: what an
application prints does not matter.
"""

from __future__ import annotations

"""Programs that a release runs on its own Python, which may be as old as 3.6; no core is there.

Each is read as text and handed over by `-c`. What is asked stands as JSON in the open file whose
number is in the environment variable `VIRTUALENV_TOOLS_ASKED`, and the answer is put in its place:
what an application prints is no concern of theirs.
"""

from __future__ import annotations

"""`python -m relocate_core`, the same as `virtualenv-tools`."""

from __future__ import annotations

import sys

from .cli import main

sys.exit(main())

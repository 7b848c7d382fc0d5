"""The operating system: files, locks, processes, ownership. Knows no virtualenv."""

from __future__ import annotations

"""Tar archives that may be hostile, and compression. Knows no virtualenv."""

from __future__ import annotations

"""Relocating a virtualenv in place, putting it onto another Python, and checking it."""

from __future__ import annotations

"""A packed virtualenv, written and read."""

from __future__ import annotations

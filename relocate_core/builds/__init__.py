"""From requirements to a bundle."""

from __future__ import annotations

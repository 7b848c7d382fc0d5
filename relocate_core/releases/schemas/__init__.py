"""The schema of a release's database: read, recorded, migrated up and down."""

from __future__ import annotations

"""What a virtualenv is: its layout, its contents, its manifest, its Python."""

from __future__ import annotations

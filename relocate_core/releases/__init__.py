"""The releases of an app: published, switched to, rolled back, pruned."""

from __future__ import annotations

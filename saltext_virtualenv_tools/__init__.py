"""Relocate and deploy Python virtualenvs with Salt.

Salt finds the modules, the runners and the states of this package through the `salt.loader` entry
point.
"""

from __future__ import annotations

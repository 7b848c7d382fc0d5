"""The directories that packages are installed into.

Apart from `layout`, as the workers of a relocation need no more, and start faster without it.
"""

from __future__ import annotations

LIBRARIES = ("lib", "lib64", "local/lib")
"""The directories that may have the library of a Python.

Fedora, RHEL and openSUSE have compiled packages in lib64, Debian what pip installs in local.
"""

_PACKAGES = (
    *(f"{one}/{kind}" for one in LIBRARIES for kind in ("python", "pypy")),
    "site-packages",
)


def holds_packages(directory: str) -> bool:
    """Whether a directory of a virtualenv, relative to it, is one of packages or inside of one."""
    return directory.startswith(_PACKAGES)

"""Signatures of archives, by gpg."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import environments


@dataclass
class Keys:
    """Two keys, in one keyring."""

    home: str
    fingerprints: list[str]

    def sign(self, file: Path, key: int = 0) -> Path:
        """Make a detached signature."""
        signature = file.with_name(f"{file.name}.asc{key}")
        self._gpg("--yes", "-u", self.fingerprints[key], "-ao", str(signature), "-b", str(file))
        return signature

    def _gpg(self, *arguments: str) -> str:
        return environments.run("gpg", "--homedir", self.home, "-q", "--batch", *arguments)


@contextmanager
def keys() -> Iterator[Keys]:
    """Keys of gpg; skips where Salt's module for it cannot be used."""
    pytest.importorskip("gnupg", reason="python-gnupg is not installed")
    if shutil.which("gpg") is None:
        pytest.skip("gpg is not on this machine")
    home = tempfile.mkdtemp(prefix="gpg-")
    made = Keys(home, [])
    for user in ("build", "other"):
        made._gpg("--passphrase", "", "--quick-generate-key", user, "ed25519", "sign", "never")
    rows = [line.split(":") for line in made._gpg("--list-keys", "--with-colons").splitlines()]
    made.fingerprints += [row[9] for row in rows if row[0] == "fpr"]
    yield made
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "all"], capture_output=True)
    shutil.rmtree(home, ignore_errors=True)

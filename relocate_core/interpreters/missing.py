"""What an interpreter needs of the system and does not find: shared libraries, certificates."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

from ..errors import CannotRun
from ..system.processes import identity, run

SECONDS = 120
VARIABLES = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
_LIBRARY = re.compile(r"(?:\A|librar(?:y|ies):? )(\S+?\.so\S*): (?:cannot open|No such file)")
"""As glibc and as musl report one that is not there."""
_QUESTION = """
import json, os, sys, sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
broken = {}
directory = os.path.join(sysconfig.get_path('platstdlib'), 'lib-dynload')
if not os.path.isdir(directory):
    directory = os.path.dirname(directory)  # where PyPy has them
for file in sorted(os.listdir(directory)):
    name = file.partition('.')[0]
    if not file.endswith(tuple(EXTENSION_SUFFIXES)) or name.startswith(('_test', 'xx', '_xx')):
        continue
    try:
        __import__(name)
    except Exception as error:
        broken[file] = str(error)
unverified = []
try:
    import ssl
except ImportError:
    pass
else:
    places = ssl.get_default_verify_paths()
    found = places.cafile or places.capath and os.listdir(places.capath)
    unverified = [] if found else [places.openssl_cafile, places.openssl_capath]
print(json.dumps({
    'library': os.path.relpath(directory, sys.prefix),
    'ssl': os.path.relpath(os.path.join(sysconfig.get_path('stdlib'), 'ssl.py'), sys.prefix),
    'broken': broken,
    'unverified': unverified,
}))
"""


def library_in(error: str) -> str | None:
    """The missing library that an error of the loader is about, with what to do; else None."""
    found = _LIBRARY.search(error)
    if found is None:
        return None
    return f"{found[1]} is not installed here: install the system's package that has it"


def missing(program: str, user: tuple[int, int] | None = None) -> Iterator[tuple[str, str]]:
    """Let an interpreter import each compiled module of its standard library.

    Args:
        program: its program.
        user: user and group to run it as; None for whoever runs this.

    Yields:
        The file and the reason of each module that cannot be imported here, mostly for want of a
        library of the system, and of `ssl` where there are no certificates to verify a server by.

    Raises:
        CannotRun: it does not run.
    """
    command = [program, "-I", "-S", "-B", "-c", _QUESTION]
    done = run(command, "/", VARIABLES, user=identity(user)[0], seconds=SECONDS)
    try:
        answer = json.loads(done.output)
    except ValueError:
        ended = f"it ended with code {done.code}"
        reason = next(reversed(done.errors.strip().splitlines()), ended)
        raise CannotRun(
            f"{program} does not import the modules of its library: {reason}; pack one that was "
            "built for this system"
        ) from None
    for file, error in answer["broken"].items():
        lacks = library_in(error)
        reason = (
            f"it cannot be imported, as {lacks}" if lacks else f"it cannot be imported: {error}"
        )
        yield os.path.join(answer["library"], file), reason
    if answer["unverified"]:
        reason = (
            f"no server can be verified, as {' and '.join(answer['unverified'])} have no "
            "certificates: install ca-certificates, or set SSL_CERT_FILE where the release runs"
        )
        yield answer["ssl"], reason

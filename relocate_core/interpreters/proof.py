"""Running an unpacked interpreter, to see that it is what its manifest says."""

from __future__ import annotations

import json
import os

from ..errors import CannotRun, reason_of
from ..system.processes import identity, run
from ..virtualenvs.manifest import Head
from .missing import SECONDS, VARIABLES, library_in
from .place import own_python

_QUESTION = """
import _imp, json, sys
print(json.dumps({
    'prefix': sys.prefix,
    'version': '%d.%d.%d' % sys.version_info[:3],
    'implementation': sys.implementation.name,
    'cache_tag': sys.implementation.cache_tag,
    'soabi': (_imp.extension_suffixes() or [''])[0][1:-3],
}))
"""


def prove(path: str, head: Head, archive: str) -> None:
    """Run an interpreter, and compare it with its manifest.

    Args:
        path: its directory.
        head: that of its manifest.
        archive: what it came from, for messages.

    Raises:
        CannotRun: it does not run, or is another one than its manifest says.
    """
    own = own_python(head)
    doing = f"cannot deploy the Python of {archive}"
    command = [os.path.join(path, own.program), "-I", "-S", "-B", "-c", _QUESTION]
    try:
        done = run(command, "/", VARIABLES, user=identity(None)[0], seconds=SECONDS)
        answer = json.loads(done.output)
    except OSError as error:
        raise CannotRun(f"{doing}: it does not run: {reason_of(error)}") from error
    except ValueError:
        ended = f"it ended with code {done.code}"
        reason = next(reversed(done.errors.strip().splitlines()), ended)
        other = f"{reason}; pack one that was built for this system"
        raise CannotRun(f"{doing}: it does not run, as {library_in(reason) or other}") from None
    wanted = {
        "prefix": os.path.realpath(path),
        "version": head.version,
        "implementation": head.implementation,
        "cache_tag": own.cache_tag,
        "soabi": own.soabi,
    }
    answer["prefix"] = os.path.realpath(answer["prefix"])
    for key, value in wanted.items():
        if answer[key] != value:
            raise CannotRun(
                f"{doing}: its {key} is {answer[key]}, where {value} was expected; pack it again"
            )

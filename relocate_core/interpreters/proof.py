"""Running an unpacked interpreter, to see that it is what its manifest says and works here."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from ..errors import CannotRun, reason_of
from ..system.processes import identity, run
from ..virtualenvs.manifest import Head
from .place import own_python

_SECONDS = 120
_QUESTION = """
import json, os, sys, sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
broken = {}
directory = os.path.join(sysconfig.get_path('platstdlib'), 'lib-dynload')
for file in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
    name = file.partition('.')[0]
    if not file.endswith(tuple(EXTENSION_SUFFIXES)) or name.startswith(('_test', 'xx', '_xx')):
        continue
    try:
        __import__(name)
    except Exception as error:
        broken[file] = str(error)
print(json.dumps({
    'prefix': sys.prefix,
    'version': '%d.%d.%d' % sys.version_info[:3],
    'implementation': sys.implementation.name,
    'cache_tag': sys.implementation.cache_tag,
    'soabi': sysconfig.get_config_var('SOABI') or '',
    'library': os.path.relpath(directory, sys.prefix),
    'broken': broken,
}))
"""


def prove(path: str, head: Head, archive: str) -> Iterator[tuple[str, str]]:
    """Run an interpreter, and import each compiled module of its standard library.

    Args:
        path: its directory.
        head: that of its manifest.
        archive: what it came from, for messages.

    Yields:
        The file and the reason of each module that cannot be imported here, mostly for want of a
        library of the system.

    Raises:
        CannotRun: it does not run, or is another one than its manifest says.
    """
    own = own_python(head)
    doing = f"cannot deploy the Python of {archive}"
    command = [os.path.join(path, own.program), "-I", "-S", "-B", "-c", _QUESTION]
    variables = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    try:
        done = run(command, "/", variables, user=identity(None)[0], seconds=_SECONDS)
        answer = json.loads(done.output)
    except OSError as error:
        raise CannotRun(f"{doing}: it does not run here: {reason_of(error)}") from error
    except ValueError:
        ended = f"it ended with code {done.code}"
        reason = next(reversed(done.errors.strip().splitlines()), ended)
        raise CannotRun(
            f"{doing}: it does not run here: {reason}; pack one that was built for this system"
        ) from None
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
    for file, reason in answer["broken"].items():
        yield os.path.join(answer["library"], file), f"it cannot be imported here: {reason}"

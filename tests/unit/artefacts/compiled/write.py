"""Compile one source, as it is at several prefixes, with the Python that runs this; print it all.

    PYTHONNODEBUGRANGES=1 python3.15 write.py >3.15.json

Without columns, which record how long a literal was, bytecode of two prefixes differs in nothing
but the paths.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import py_compile
import sys
import sysconfig
import tempfile
import zlib

PREFIXES = ("/srv/app", "/opt/new", "/x", "/srv/" + "l" * 260, "/srv/gr\u00fcn/\u4e2d")
MTIME = 1600000000
SIZE = 8000
SOURCE = '''"""Installed in {P}, with data below {P}/share."""
from typing import NamedTuple
PATH = "{P}"
BELOW = "{P}/lib/python", b"/srv/app-bytes", ("{P}/one", ("{P}/two", 1.5, 2j, None, ..., 1 << 80))
LONG = "{P}/{FILL}"
UMLAUT = "{P}/gr\\u00fcn"


def outer(default="{P}/default", *, keyword: "{P}/annotation" = "{P}/keyword") -> "{P}/result":
    """Documented in {P}."""
    def inner(key={{"{P}/key": "{P}/value"}}):
        return [lambda: (number, "{P}/lambda") for number in range(3)]
    return inner, PATH[1:2], PATH[:-1]


class Thing(NamedTuple):
    where: str = "{P}/class"

    async def method(self):
        yield f"{P}/{{self.where}}/y{{self!r:>10}}"
'''
NEW = {
    (
        3,
        12,
    ): '\n\ntype Path[T: "{P}/bound"] = "{P}/alias"\n\n\ndef some[T](x: T = "{P}/t"): ...\n',
    (3, 14): '\n\nTEMPLATE = t"{P}/{{PATH}}"\n\n\ndef part(): return PATH[1:2:3]\n',
}


def source(prefix: str) -> bytes:
    """The source at a prefix; all have the same size, which is in the header of the bytecode."""
    parts = [SOURCE, *(text for version, text in NEW.items() if sys.version_info >= version)]
    text = "".join(parts).format(P=prefix, FILL="f" * 300).encode()
    return text + b"#" * (SIZE - len(text))


def compiled(directory: str, prefix: str, mode: py_compile.PycInvalidationMode) -> bytes:
    """The bytecode of `<prefix>/lib/mod.py`."""
    file, target = os.path.join(directory, "mod.py"), os.path.join(directory, "out.pyc")
    with open(file, "wb") as stream:
        stream.write(source(prefix))
    os.utime(file, (MTIME, MTIME))
    py_compile.compile(file, target, f"{prefix}/lib/mod.py", doraise=True, invalidation_mode=mode)
    with open(target, "rb") as stream:
        return stream.read()


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def main() -> None:
    """Print all of it as JSON."""
    files = {}
    with tempfile.TemporaryDirectory() as directory:
        for mode in py_compile.PycInvalidationMode:
            for prefix in PREFIXES:
                data = compiled(directory, prefix, mode)
                files[f"{mode.name} {prefix}"] = packed(data)
    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    result = {
        "version": ".".join(map(str, sys.version_info[:3])),
        "free_threaded": free_threaded,
        "magic": importlib.util.MAGIC_NUMBER.hex(),
        "sources": {prefix: packed(source(prefix)) for prefix in PREFIXES},
        "files": files,
    }
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()

"""The program that an interpreter runs to report what it is, as JSON.

It is for every Python since 2.7, CPython and PyPy, and imports nothing that its `site` has to find.
"""

from __future__ import annotations

PROGRAM = """
import json, os, sys
try:
    import _imp
    suffixes = _imp.extension_suffixes()
except ImportError:
    import imp
    suffixes = [s for s, _, kind in imp.get_suffixes() if kind == imp.C_EXTENSION]
try:
    from _frozen_importlib_external import MAGIC_NUMBER
    magic = ''.join('%02x' % byte for byte in MAGIC_NUMBER)
except ImportError:
    magic = ''
try:
    libc = os.confstr(2 if sys.version_info[0] == 2 else 'CS_GNU_LIBC_VERSION') or ''
except (AttributeError, ValueError, OSError):
    libc = ''
pypy = hasattr(sys, 'pypy_version_info')
print(json.dumps({
    'version': list(sys.version_info[:3]),
    'implementation': 'pypy' if pypy else 'cpython',
    'suffixes': suffixes,
    'prefix': sys.prefix,
    'base_prefix': getattr(sys, 'base_prefix', getattr(sys, 'real_prefix', sys.prefix)),
    'executable': sys.executable,
    'base_executable': getattr(sys, '_base_executable', None),
    'machine': os.uname()[4],
    'cache_tag': getattr(getattr(sys, 'implementation', None), 'cache_tag', None),
    'magic': magic,
    'libc': libc,
    'free_threaded': 't' in getattr(sys, 'abiflags', ''),
}))
"""

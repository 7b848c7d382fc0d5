"""The program that a virtualenv's own Python runs to compile sources.

For Python 3.6 to 3.14 and PyPy. It imports only modules that are there without the standard
library, which an old virtualenv does not have before its site.py has run.
"""

from __future__ import annotations

GREETING = b"\0ready to compile\n"
"""What it writes first; all before that is of somebody else, for example of a .pth file."""

PROGRAM = """
import sys
sys.path[:] = [directory for directory in sys.path if directory]
import _imp, gc, marshal
try:
    from _frozen_importlib_external import MAGIC_NUMBER
except ImportError:
    from importlib.util import MAGIC_NUMBER
try:
    import _signal
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)  # Ctrl-C is the parent's affair
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except Exception:
    pass

KEY = int.from_bytes(MAGIC_NUMBER, 'little')
OLD = sys.version_info < (3, 7)
PYPY = hasattr(sys, 'pypy_version_info')
read, write, flush = sys.stdin.buffer.read, sys.stdout.buffer.write, sys.stdout.buffer.flush


# Where marshal goes by reference counts, it marks an object as shared, though nothing in the file
# shares it, when somebody else in the process knows it as well: a name that an imported module
# has too, say. With a reference of our own to each part of the code, all are marked, always. These
# references are the module's: PyPy may drop a local variable that nothing reads any more.
HELD = []


def parts(code):
    held, left = [], [code]
    while left:
        value = left.pop()
        held.append(value)
        if isinstance(value, (tuple, frozenset)):
            left += value
        elif isinstance(value, slice):
            left += [value.start, value.stop, value.step]
        elif isinstance(value, type(code)):
            left += [value.co_consts, value.co_names, value.co_varnames, value.co_freevars]
            left += [value.co_cellvars, value.co_filename, value.co_name]
            left.append(getattr(value, 'co_qualname', None))
    return held


# A set that is a constant of several functions is one object or several, as its strings were
# interned before or not (which they are for good from 3.12 on). With a set for each, it is several.
def separate(code):
    constants = []
    for value in code.co_consts:
        if isinstance(value, frozenset):
            value = frozenset(list(value))
        elif isinstance(value, type(code)):
            value = separate(value)
        constants.append(value)
    if all(new is old for new, old in zip(constants, code.co_consts)):
        return code
    return code.replace(co_consts=tuple(constants))


# Without the GIL, the constants of new code are replaced by equal ones that the process has from
# any code before it. So all code is made again: equal constants are one then, and names, which the
# compiler may have shared with them, are none of them.
def interned(code):
    constants = [interned(v) if isinstance(v, type(code)) else v for v in code.co_consts]
    return code.replace(co_consts=tuple(constants), co_names=tuple(list(code.co_names)))


def compiled(source, name, optimization, flags, mtime, code):
    if flags and OLD:
        return None
    if code is None:
        made = compile(source, name, 'exec', 0, True, optimization)
        if 't' in getattr(sys, 'abiflags', ''):
            made = interned(made)
        elif hasattr(made, 'replace'):
            made = separate(made)
        HELD[:] = parts(made)
        if PYPY:  # it writes a string as interned where an equal one is, by whatever code
            HELD[:] = HELD + [sys.intern(value) for value in HELD if type(value) is str]
        code = marshal.dumps(made)
    if flags:
        return MAGIC_NUMBER + number(flags) + _imp.source_hash(KEY, source) + code
    header = MAGIC_NUMBER if OLD else MAGIC_NUMBER + number(0)
    return header + number(mtime) + number(len(source)) + code


def number(value):
    return (value & 0xFFFFFFFF).to_bytes(4, 'little')


def answer(head):
    fields = [int.from_bytes(head[at:at + 8], 'little') for at in range(0, 48, 8)]
    optimization, flags, mtime, size, source_size, code_size = fields
    name = read(size).decode('utf-8', 'surrogateescape')
    source = read(source_size)
    code = read(code_size - 1) if code_size else None
    try:
        return compiled(source, name, optimization, flags, mtime, code)
    except Exception:
        return None


gc.disable()
# There is one string of each single character, and marshal writes interned strings as such. Some
# sources have one interned for good: a formatted string in an annotation "{" and "}", for example.
# So have all of them interned before any job.
SINGLE = [sys.intern(chr(point)) for point in range(256)]
write(GREETING)
flush()
while True:
    head = read(48)
    if len(head) < 48:
        break
    result = answer(head) or b''
    write(len(result).to_bytes(8, 'little'))
    write(result)
    flush()
""".replace("GREETING", repr(GREETING))

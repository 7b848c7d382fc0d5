"""What can go wrong, one class a meaning; each message is one sentence for an operator.

Every message contains what is wrong, where, and what to do. Callers print `str(error)` and nothing
else: the command adds an exit code, the execution module wraps it in Salt's own exception.
"""

from __future__ import annotations


def reason_of(error: OSError) -> str:
    """Why the operating system refused, as a part of a sentence."""
    return (error.strerror or str(error)).lower()


class RelocateError(Exception):
    """Base of everything that the core raises on purpose."""


class InvalidPath(RelocateError):
    """A path that no virtualenv can live at: relative, or with a newline or NUL in it."""


class NotAVirtualenv(RelocateError):
    """The directory is not a virtualenv: a file or directory that every virtualenv has is
    missing."""

    def __init__(self, path: str, kind: str, missing: str) -> None:
        super().__init__(f"{path} is not a virtualenv: not a {kind}: {missing}")


class UnknownPrefix(RelocateError):
    """Nothing in the virtualenv shows where it was built, so there is nothing to search for."""


class InterpreterNotFound(RelocateError):
    """No Python fits, or the one that was chosen does not run."""


class InterpreterMismatch(RelocateError):
    """A Python that runs, but would not run this virtualenv."""


class Busy(RelocateError):
    """Another run holds the virtualenv."""


class TreeChanged(RelocateError):
    """Somebody else wrote into the virtualenv while it was relocated."""


class BadArchive(RelocateError):
    """An archive that is damaged, or holds what no virtualenv has in it."""


class NoRoom(RelocateError):
    """The disk has too little space left."""


class UnsafeDirectory(RelocateError):
    """Another user could redirect what root writes there."""


class NotARelease(RelocateError):
    """There is no release, or something that is no complete one."""


class ReleaseInUse(RelocateError):
    """A release that must not be removed: active, pinned, or run by a process."""


class MarkedBad(RelocateError):
    """A release that was found bad before."""


class CannotTravel(RelocateError):
    """Something in a virtualenv is not portable, so it is not packed."""


class NoBase(RelocateError):
    """The base of a delta bundle is not deployed, or was changed since."""


class BuildFailed(RelocateError):
    """A tool could not build or install what it was given."""


class CannotRun(RelocateError):
    """A release that does not run here, or failed its smoke test."""


class CannotMigrate(RelocateError):
    """A schema that cannot be read, or migrated up or down."""


class TreeError(RelocateError):
    """The operating system refused: permission, a full disk, a read-only file system."""

    @classmethod
    def of(cls, path: str, error: OSError, doing: str = "relocate") -> TreeError:
        """The sentence for an `OSError` at `path`, while `doing` something with it."""
        import errno

        advice = {
            errno.EACCES: "run as the owner of the virtualenv or as root",
            errno.EPERM: "run as the owner of the virtualenv or as root",
            errno.EROFS: "remount the file system writable",
            errno.ENOSPC: "free some space and run again",
            errno.EDQUOT: "free some space or raise the quota, and run again",
            errno.ENOENT: "something else is removing files: stop it and run again",
            errno.ELOOP: "something else is replacing files: stop it and run again",
            errno.ENOTDIR: "something else is replacing files: stop it and run again",
            errno.EIO: "the disk is failing: see the kernel's log",
        }.get(error.errno or 0, "see to it and run again")
        return cls(f"cannot {doing} {path}: {reason_of(error)}; {advice}")

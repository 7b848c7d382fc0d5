"""
The keys of the formula's pillar: one table, which checks a pillar and describes it.

``TOP`` is the table. :py:func:`checked` refuses an unknown key and a value of the wrong kind, at
every level, in one sentence with the key's path. :py:func:`json_schema` is the same table for
editors, and ``docs/pillar.py`` writes the reference from it.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Union

from salt.exceptions import CommandExecutionError

__virtualname__ = "releases_schema"


def __virtual__() -> str:  # noqa: N807
    return __virtualname__


def checked(pillar: Any) -> dict[str, Any]:
    """
    Return the pillar of the formula with every value in its long form; refuse a wrong one.

    pillar
        The pillar below ``releases``. Of its apps, only those in ``run:app`` are checked and
        returned, where that is set.

    Raises ``CommandExecutionError`` with the key that is wrong, and why.

    CLI Example:

    .. code-block:: bash

        salt '*' releases_schema.checked '{apps: {shop: {release: "1", source: /srv/1.tar}}}'
    """
    given = _mapping(pillar, "releases")
    run = {} if given.get("run") is None else _section(given["run"], "releases:run", RUN)
    if "app" in run:
        apps = {} if given.get("apps") is None else _mapping(given["apps"], "releases:apps")
        # A run for one app may override its release in the pillar; a release alone makes no app.
        known = [
            name
            for name, app in apps.items()
            if not (isinstance(app, Mapping) and set(app) == {"release"})
        ]
        for name in run["app"]:
            if name not in known:
                raise _wrong(f"releases:run:app: {name} is no app of this minion: {_among(known)}")
        given["apps"] = {name: apps[name] for name in apps if name in run["app"]}
    return _section(given, "releases", TOP)


def json_schema() -> dict[str, Any]:
    """
    Return a JSON schema of a pillar file with the key ``releases``, for editors.

    CLI Example:

    .. code-block:: bash

        salt-call --local releases_schema.json_schema --out=json
    """
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "The pillar of the Salt formula releases",
        "type": "object",
        "properties": {"releases": _described(TOP)},
    }


# --- the forms of a table -------------------------------------------------------------------------


class Key(NamedTuple):
    """A key of a section."""

    kind: Kind
    about: str
    """What it is, in Markdown."""
    default: str = ""
    """What counts where it is left out, for the reference."""
    needed: str = ""
    """Where it may not be left out: what to set it to."""


class Section(NamedTuple):
    """A dictionary of known keys."""

    keys: dict[str, Key]
    renamed: Mapping[str, str] = MappingProxyType({})
    """What to use in place of a key that another version had."""
    together: tuple[str, ...] = ()
    """Keys that are set all or none."""


class Variants(NamedTuple):
    """A dictionary whose keys depend on the value of one of them."""

    key: str
    sections: dict[str, Section]
    needed: str


class Each(NamedTuple):
    """A dictionary of an operator's own names."""

    kind: Kind
    names: str
    """The kind of the names."""


class Listed(NamedTuple):
    """A list, or one value alone."""

    kind: Kind


class Choice(NamedTuple):
    """One of several words."""

    words: tuple[str, ...]


class Either(NamedTuple):
    """A value of one of several kinds: of the first that its type fits."""

    kinds: tuple[Kind, ...]


# A text is the name of a kind in _KINDS.
Kind = Union[str, Section, Variants, Each, Listed, Choice, Either]


# --- the table ------------------------------------------------------------------------------------

_TEXTS = Listed("text")
_ENV = Each("line", "variable")
_STATIC = Each("url directory", "url directory")

RUN = Section(
    {
        "app": Key(Listed("word"), "the apps that this run is about", "all apps"),
        "to": Key("name", "the release that `releases.rollback` activates", "the previous release"),
        "from": Key(
            "name",
            "the release that `releases.rollback` leaves; a minion where another one is active is "
            "left as it is",
            "whatever is active",
        ),
        "purge_data": Key(
            "flag", "whether `releases.clean` removes the shared data and the root too", "`False`"
        ),
    }
)

_CHECK_URL = Section(
    {
        "url": Key("text", "a URL that has to answer", needed="set it to the URL, or set cmd"),
        "status": Key("positive", "the HTTP status that it has to answer with", "200"),
        "match": Key("regular expression", "what the page has to contain"),
    }
)
_CHECK_CMD = Section(
    {
        "cmd": Key("text", "a command that has to succeed in the release", needed="set it"),
        "user": Key("name", "who runs it", "the app's"),
    }
)

HEALTH = Section(
    {
        "checks": Key(
            Listed(Either(("text", _CHECK_CMD, _CHECK_URL))),
            "what has to succeed after a switch, or the previous release is activated again: a URL "
            "(with `url`, `status` and `match`) or a command (with `cmd` and `user`), as "
            "[`healthy`](virtualenv_relocated.md#healthy) takes it",
        ),
        "attempts": Key("positive", "how often each check is tried", "10"),
        "interval": Key("number", "seconds between two attempts", "1"),
        "timeout": Key("seconds", "seconds that one attempt may take", "10"),
    }
)

_MIGRATION = {
    "host": Key(
        "text",
        "the ID of the one minion that migrates, where many use one database "
        "([databases](../databases.md)); the others wait for it",
    ),
    "env": Key(Each("value", "variable"), "more variables for the migration"),
    "user": Key("name", "who runs it", "the app's"),
    "cwd": Key("text", "its working directory, in the release", "the release"),
    "timeout": Key("seconds", "seconds that one program may take", "600"),
    "wait": Key("number", "seconds to wait for another run in this root, or for the host", "300"),
}
_KIND = Key(
    Choice(("django", "alembic", "commands")),
    "what migrates",
    needed="django, alembic or commands",
)
_OF_A_MIGRATION = {"environment": "env", "environ": "env"}
MIGRATIONS = Variants(
    "kind",
    {
        "django": Section(
            {
                "kind": _KIND,
                "manage": Key("text", "how its `manage.py` is called, in place of `settings`"),
                "settings": Key("text", "the module of the settings"),
                "database": Key("text", "the database's alias", "`default`"),
                **_MIGRATION,
            },
            _OF_A_MIGRATION,
        ),
        "alembic": Section(
            {
                "kind": _KIND,
                "config": Key("text", "its ini file", "`alembic.ini`"),
                **_MIGRATION,
            },
            _OF_A_MIGRATION,
        ),
        "commands": Section(
            {
                "kind": _KIND,
                "version": Key("text", "a command that prints the version", needed="set it"),
                "up": Key("text", "a command that migrates up", needed="set it"),
                "down": Key("text", "a command that migrates down to `{version}`"),
                "check": Key(
                    "text",
                    "a command that succeeds where the schema has all that the release needs; "
                    "needed with `host`",
                ),
                **_MIGRATION,
            },
            _OF_A_MIGRATION,
        ),
    },
    "django, alembic or commands",
)

PROGRAM = Section(
    {
        "command": Key(
            "command",
            "what is run; begins with a path in the release, such as `bin/gunicorn`, or one "
            "outside of all releases",
            needed="set it to what is to be run, such as bin/gunicorn shop.wsgi",
        ),
        "socket": Key(
            "address", "a socket that the process manager holds, so that a restart loses no request"
        ),
        "env": Key(
            _ENV, "environment variables; supervisor takes no value with both kinds of quotes"
        ),
        "reload_signal": Key(
            Choice(("HUP", "USR1", "USR2")), "the signal that `releases.reload` sends", "a restart"
        ),
        "stop_timeout": Key("number", "seconds that it may take to end", "30"),
        "user": Key("name", "who runs it", "the app's"),
    },
    {
        "environment": "env",
        "environ": "env",
        "reload": "reload_signal",
        "stop_wait": "stop_timeout",
    },
)

NGINX = Section(
    {
        "listen": Key(Listed("address"), "where it listens", "80"),
        "server_names": Key(Listed("host"), "names of hosts, for `server_name`"),
        "upstream": Key(
            "upstream",
            "what answers: `http://` or `uwsgi://`, with a host and a port, or `unix:/path`",
            needed="set it to the program's address, such as http://127.0.0.1:8000",
        ),
        "static": Key(
            _STATIC,
            "directories by URL, each with a slash at its end: in the active release, or anywhere "
            "if absolute",
        ),
        "ssl_certificate": Key("path", "for TLS, with `ssl_certificate_key`"),
        "ssl_certificate_key": Key("path", "for TLS, with `ssl_certificate`"),
        "client_max_body_size": Key("size", "how large a request may be", "`10m`"),
    },
    {
        "names": "server_names",
        "body": "client_max_body_size",
        "certificate": "ssl_certificate",
        "key": "ssl_certificate_key",
    },
    together=("ssl_certificate", "ssl_certificate_key"),
)

APACHE = Section(
    {
        "listen": Key("address", "where it listens", "80"),
        "server_names": Key(Listed("host"), "`ServerName` and `ServerAlias`", "`localhost`"),
        "static": Key(_STATIC, "as for nginx"),
        "wsgi_module": Key(
            "module",
            "the module with `application`, such as `shop.wsgi`",
            needed="set it to the application's module, such as shop.wsgi",
        ),
        "processes": Key("positive", "processes of mod_wsgi", "2"),
        "threads": Key("positive", "threads of each", "15"),
    },
    {"names": "server_names", "wsgi": "wsgi_module"},
)

PYTHON = Section(
    {
        "source": Key(
            "text",
            "the bundle: `salt://pythons/cpython-3.13.0.tar.zst`, a URL, or a path",
            needed="set it to the bundle of an interpreter",
        ),
        "source_hash": Key(
            "text",
            "what it has to hash to: the SHA-256, or a file of hashes",
            needed="set it, as nothing is run from a bundle whose hash was not given",
        ),
    }
)

# What `virtualenv_relocated.managed` takes as it is.
MANAGED = {
    "source_hash": Key(
        "text",
        "what the archive has to hash to; needed for what does not come from Salt's file server or "
        "this machine",
    ),
    "source_hash_name": Key("text", "the name to look for in a file of hashes"),
    "skip_verify": Key("flag", "takes an archive without a hash", "`False`"),
    "signature": Key(_TEXTS, "signatures of the archive"),
    "source_hash_sig": Key(Either(("flag", "text")), "a signature of the file of hashes"),
    "signed_by_any": Key(_TEXTS, "keys, of which one has to have signed"),
    "signed_by_all": Key(_TEXTS, "keys that all have to have signed"),
    "keyring": Key("path", "the keyring"),
    "gnupghome": Key("path", "GnuPG's directory"),
    "sig_backend": Key("text", "Salt's module that verifies", "`gpg`"),
    "keep_source": Key("flag", "leaves the archive in the minion's cache", "`False`"),
    "hard_links": Key("flag", "shares unchanged files as hard links", "`False`"),
    "limits": Key(
        Section(
            {
                "files": Key("positive", "members of any kind", "500000"),
                "size": Key("positive", "bytes in all of its files", "20 GiB"),
                "ratio": Key("positive", "times its own size that it unpacks to", "200"),
            }
        ),
        "what an archive may contain at most; a larger one is refused",
    ),
    "mode": Key("text", "of the release's own directory", "`'0755'`"),
}

APP = Section(
    {
        "release": Key(
            "name",
            "what is to be deployed; in quotes, if it may be digits only",
            needed="set it to the release to deploy",
        ),
        "source": Key(
            "source",
            "the archive: `salt://shop/{release}.tar.gz`, a URL, a path; a list; or `full` and "
            "`from` ([bundles](../bundles.md#only-what-changed))",
            needed="set it to the archive, such as salt://shop/{release}.tar.gz",
        ),
        "root": Key("path", "the directory of the releases", "`/srv/NAME`"),
        "user": Key(
            "name",
            "who runs the programs and the migrations, and owns the shared directories; created if "
            "missing",
            "`NAME`",
        ),
        "group": Key("name", "the group; created if missing", "as `user`"),
        "file_owner": Key("name", "who owns the files of the releases", "the minion's user"),
        "file_group": Key("name", "their group"),
        "python": Key(
            Either(("text", PYTHON)),
            "the Python to run on, such as `'3.11'`; installed if missing, on Debian, Red Hat and "
            "Suse. Or one that the release brings: `source` and `source_hash` of the bundle of an "
            "interpreter ([bundles](../bundles.md#deploy-a-python))",
            "the one that fits",
        ),
        "os_packages": Key(
            _TEXTS, "packages of the operating system, such as a database's libraries"
        ),
        "keep_releases": Key("count", "good releases that stay", "5"),
        "smoke_tests": Key(_TEXTS, "commands that have to succeed in a release before it counts"),
        "shared_dirs": Key(
            "shared",
            "persistent directories ([concepts](../concepts.md#shared-data)): paths in the "
            "release, which become symlinks to `ROOT/shared/PATH`, or to the path that a "
            "dictionary has; created if missing",
        ),
        "shared_files": Key("shared", "persistent files, likewise; each has to exist"),
        "migrations": Key(MIGRATIONS, "how the database is migrated; see below"),
        "programs": Key(Each(PROGRAM, "word"), "the programs, by name; see below"),
        "process_manager": Key(Choice(("supervisor", "systemd")), "what runs them", "`supervisor`"),
        "web": Key(
            Section({"nginx": Key(NGINX, "see below"), "apache": Key(APACHE, "see below")}),
            "web servers on the same machine: `nginx`, `apache`; see below",
        ),
        "health": Key(HEALTH, "what has to succeed after a switch; see below"),
        **MANAGED,
    },
    {
        "shared": "shared_dirs for directories and shared_files for files",
        "keep": "keep_releases",
        "smoke": "smoke_tests",
        "checks": "health:checks",
        "owner": "file_owner",
        "owner_group": "file_group",
        "manager": "process_manager",
        "packages": "os_packages",
    },
)

BUILD = Section(
    {
        "requirements": Key(_TEXTS, "requirement files, such as a lock with hashes"),
        "project": Key("text", "a directory with a `pyproject.toml` or `setup.py`"),
        "pip_packages": Key(_TEXTS, "requirements, such as `gunicorn>=22`"),
        "wheels": Key(_TEXTS, "wheel files"),
        "find_links": Key(_TEXTS, "directories or pages with packages, besides the index"),
        "index": Key("text", "the package index"),
        "extra_index": Key(_TEXTS, "further ones"),
        "no_index": Key("flag", "take packages from `find_links` only", "`False`"),
        "require_hashes": Key("flag", "refuse packages without a hash", "`False`"),
        "constraints": Key(_TEXTS, "constraint files"),
        "python": Key("text", "an executable, a command or `'X.Y'`", "the first `python3`"),
        "tool": Key(Choice(("venv", "virtualenv", "uv")), "what creates the environment", "`venv`"),
        "installer": Key(Choice(("pip", "uv")), "what installs", "`pip`"),
        "system_site_packages": Key(
            "flag", "do not install what the Python's own packages meet", "`False`"
        ),
        "delta_from": Key(
            Either(("count", _TEXTS)),
            "full bundles, or how many of the latest: a delta bundle is written from each",
            "0",
        ),
        "exclude": Key(_TEXTS, "patterns of what is left out of the bundle"),
        "prefix": Key("path", "pack it as if it had been built there"),
        "bytecode": Key(
            Choice(("timestamp", "checked-hash", "unchecked-hash")),
            "how bytecode is matched with its source",
            "`timestamp`",
        ),
        "level": Key("count", "of the compression"),
        "commit": Key("text", "what is built", "what is checked out in `project`"),
        "env": Key(Each("value", "variable"), "more variables for the tools"),
        "cache": Key("path", "a directory that is kept between builds", "in the minion's cache"),
        "force": Key("flag", "build even where no input has changed", "`False`"),
        "wait": Key("number", "seconds to wait for another build", "3600"),
    },
    {"packages": "pip_packages", "environment": "env", "environ": "env", "against": "delta_from"},
)

_COMMAND = "the client to call, with its options"
_OF_A_SERVER = {"configs": "conf_dir", "logs": "log_dir"}
_RELOAD = Key("text", "run where the configuration has changed", "by OS family")
SERVERS = {
    "supervisor": Section(
        {
            "command": Key("text", _COMMAND, "`supervisorctl`"),
            "conf_dir": Key("path", "the directory of its configuration", "by OS family"),
            "conf_suffix": Key("suffix", "the end of a file's name there", "by OS family"),
            "log_dir": Key(
                "path",
                "where the programs' output goes: `<app>-<program>.log`, and "
                "`<app>-<program>-0.log` and `-1.log` for the two processes of one with a socket",
                "`/var/log/supervisor`",
            ),
        },
        _OF_A_SERVER,
    ),
    "systemd": Section(
        {
            "command": Key("text", _COMMAND, "`systemctl`"),
            "conf_dir": Key("path", "the directory of the units", "`/etc/systemd/system`"),
        },
        _OF_A_SERVER,
    ),
    **{
        server: Section(
            {
                "conf_dir": Key("path", "the directory of its configuration", "by OS family"),
                "reload_command": _RELOAD,
            },
            {**_OF_A_SERVER, "reload": "reload_command"},
        )
        for server in ("nginx", "apache")
    },
}

TOP = Section(
    {
        "apps": Key(Each(APP, "word"), "the apps, by name; each has a section below"),
        "builds": Key(
            Each(BUILD, "bundle"),
            "for the build machine: what [`packed`](virtualenv_relocated.md#packed) takes, by "
            "bundle; see below",
        ),
        "run": Key(RUN, "arguments of one run, given on the command line; see below"),
        **{server: Key(keys, "see below") for server, keys in SERVERS.items()},
    },
    {
        "only": "run:app",
        "to": "run:to",
        "leaving": "run:from",
        "with_data": "run:purge_data",
    },
)


# --- checking -------------------------------------------------------------------------------------

# What a text of a kind has to match, and what that is in words.
_PATTERNS = {
    "name": (r"[A-Za-z0-9][A-Za-z0-9._+-]*", "a name, of letters, digits and . _ + -"),
    "word": (r"[A-Za-z][A-Za-z0-9_-]*", "a name, of letters, digits and _ -"),
    "variable": (r"[A-Za-z_][A-Za-z0-9_]*", "a variable's name"),
    "path": (r"/[^\s\"'%;{}]*", "an absolute path without spaces or quotes"),
    "bundle": (r"/\S.*", "an absolute path"),
    "address": (
        r"([0-9]+|([\w.*-]+|\[[0-9a-fA-F:]+\]):[0-9]+)",
        "a port, or an address and a port",
    ),
    "upstream": (
        r"((https?|uwsgi)://([\w.-]+|\[[0-9a-fA-F:]+\]):[0-9]+|(http|uwsgi)://unix:/\S+)",
        "http:// or uwsgi:// with a host and a port",
    ),
    "size": (r"[0-9]+[kKmMgG]?", "a size such as 10m"),
    "host": (r"[\w*.-]+", "a host's name"),
    "module": (r"[A-Za-z_][\w.]*", "a module such as shop.wsgi"),
    "suffix": (r"\.[a-z]+", "the end of a file's name, such as .conf"),
    "url directory": (
        r"(?!.*\.\.(/|$))[\w./~@+-]+/",
        "a URL such as /static/ and a directory such as static/, each with a slash at its end",
    ),
}
_TYPES: dict[str, tuple[type, ...]] = {"flag": (bool,), "count": (int,)}
# Kinds whose value YAML may read as a number.
_NUMERIC = ("address", "size")


def _wrong(words: str) -> CommandExecutionError:
    return CommandExecutionError(words)


def _check(value: Any, where: str, kind: Kind) -> Any:
    """A value in its long form, checked."""
    if isinstance(kind, Section):
        return _section(value, where, kind)
    if isinstance(kind, Variants):
        return _variant(value, where, kind)
    if isinstance(kind, Each):
        return _each(value, where, kind)
    if isinstance(kind, Listed):
        values = value if isinstance(value, (list, tuple)) else [value]
        return [_check(one, where, kind.kind) for one in values]
    if isinstance(kind, Choice):
        if value not in kind.words:
            raise _wrong(f"{where} must be {' or '.join(kind.words)}: {value!r}")
        return value
    if isinstance(kind, Either):
        return _check(value, where, _fitting(value, kind))
    if kind in _PATTERNS:
        return _matching(value, where, kind)
    return _CHECKS[kind](value, where)


def _section(value: Any, where: str, section: Section) -> dict[str, Any]:
    """A dictionary of known keys; those without a value are left out."""
    given = _mapping(value, where)
    for key in given:
        if key not in section.keys:
            raise _wrong(f"unknown key {where}:{key}{_hint(key, section)}")
    made = {
        key: _check(one, f"{where}:{key}", section.keys[key].kind)
        for key, one in given.items()
        if one is not None
    }
    for key, known in section.keys.items():
        if known.needed and key not in made:
            if key == "source" and "source_hash" in made:
                raise _wrong(f"{where}:source_hash verifies nothing, as source is missing")
            raise _wrong(f"{where}:{key} is missing: {known.needed}")
    missing = [key for key in section.together if key not in made]
    if missing and len(missing) < len(section.together):
        (other, *_) = (key for key in section.together if key in made)
        raise _wrong(f"{where}:{missing[0]} is missing: {other} is not used without it")
    return made


def _hint(key: Any, section: Section) -> str:
    """What to do about a key that does not exist."""
    if key in section.renamed:
        return f", use {section.renamed[key]}"
    near = difflib.get_close_matches(str(key), section.keys, 1)
    return f", did you mean {near[0]}?" if near else f": {_among(section.keys)}"


def _among(names: Iterable[str]) -> str:
    return f"there are {', '.join(sorted(names))}" if names else "there are none"


def _variant(value: Any, where: str, variants: Variants) -> dict[str, Any]:
    given = _mapping(value, where)
    if given.get(variants.key) is None:
        raise _wrong(f"{where}:{variants.key} is missing: {variants.needed}")
    chosen = _check(given[variants.key], f"{where}:{variants.key}", Choice((*variants.sections,)))
    return _section(given, where, variants.sections[chosen])


def _each(value: Any, where: str, each: Each) -> dict[str, Any]:
    given = _mapping(value, where)
    for name in given:
        _check(name, f"{where}:{name}", each.names)
    return {str(name): _check(one, f"{where}:{name}", each.kind) for name, one in given.items()}


def _fitting(value: Any, either: Either) -> Kind:
    """The kind that a value is meant to be of, by its type and its keys."""
    if isinstance(value, Mapping):
        sections = [kind for kind in either.kinds if isinstance(kind, Section)]

        def likeness(section: Section) -> tuple[int, int]:
            known = [key for key in section.keys if key in value]
            return len([key for key in known if section.keys[key].needed]), len(known)

        return max(sections, key=likeness, default=either.kinds[-1])
    for kind in either.kinds:
        if kind == "text" or isinstance(value, _TYPES.get(str(kind), ())):
            return kind
    return either.kinds[-1]


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(f"{where} must be a dictionary: {value!r}")
    return dict(value)


def _text(value: Any, where: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise _wrong(f"{where} is read as the number {value}: put it into quotes")
    if not isinstance(value, str) or not value.strip():
        raise _wrong(f"{where} must be a text: {value!r}")
    if not value.isprintable():  # a line of its own in a configuration file
        raise _wrong(f"{where} must be one line of printable characters: {value!r}")
    return value


def _matching(value: Any, where: str, kind: str) -> str:
    pattern, words = _PATTERNS[kind]
    is_number = isinstance(value, int) and not isinstance(value, bool)
    text = str(value) if kind in _NUMERIC and is_number else _text(value, where)
    if not re.fullmatch(pattern, text):
        raise _wrong(f"{where} must be {words}: {value!r}")
    return text.rstrip("/") or text if kind == "path" else text


def _number(value: Any, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise _wrong(f"{where} must be a number: {value!r}")
    return value


def _seconds(value: Any, where: str) -> Any:
    if not _number(value, where):
        raise _wrong(f"{where} must be more than 0 seconds")
    return value


def _count(value: Any, where: str) -> int:
    if not isinstance(_number(value, where), int):
        raise _wrong(f"{where} must be a whole number: {value!r}")
    return int(value)


def _positive(value: Any, where: str) -> int:
    if not _count(value, where):
        raise _wrong(f"{where} must be at least 1: {value!r}")
    return int(value)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(f"{where} must be true or false: {value!r}")
    return value


def _value(value: Any, where: str) -> str:
    """A variable's value, which may be secret: no message shows it."""
    if isinstance(value, bool):
        raise _wrong(f"{where} is read as {value}: put it into quotes")
    if not isinstance(value, (str, int, float)) or "\0" in str(value):
        raise _wrong(f"{where} must be a text")
    return str(value)


def _line(value: Any, where: str) -> str:
    text = _value(value, where)
    if not text.isprintable():
        raise _wrong(f"{where} must be one line of printable characters")
    return text


def _expression(value: Any, where: str) -> str:
    try:
        re.compile(_text(value, where))
    except re.error as error:
        raise _wrong(f"{where} must be a regular expression: {error}") from None
    return str(value)


def _command(value: Any, where: str) -> str:
    command = _text(value, where)
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise _wrong(f"{where} must be a command: {str(error).lower()}") from None
    if "/" not in words[0] or re.match(r"(?:[^/]+/)*current/", words[0].lstrip("/")):
        raise _wrong(
            f"{where} must begin with a path in the release, such as bin/gunicorn, or one outside "
            f"of all releases: {words[0]}"
        )
    return command


def _shared(value: Any, where: str) -> dict[str, str | None]:
    """The target of each shared path; None for the usual one."""
    if isinstance(value, Mapping):
        given: dict[Any, Any] = dict(value)
    else:
        given = dict.fromkeys(_check(value, where, _TEXTS))
    made: dict[str, str | None] = {}
    for path, target in given.items():
        text = _text(path, where)
        if where.endswith("files") and text.endswith("/"):
            raise _wrong(f"{where} has files only: put {text} into shared_dirs")
        relative = text.rstrip("/")
        if not relative or relative.startswith("/") or ".." in relative.split("/"):
            raise _wrong(f"{where} must be paths in the release, such as var: {text!r}")
        made[relative] = target and _matching(target, f"{where}:{path}", "path")
    return made


def _source(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        if len(value) == 1 and re.match(r"/|[a-z0-9]+://", str(next(iter(value)))):
            return dict(value)  # a place with its hash
        section = Section(
            {
                "full": Key("source", "the full bundle", needed="from has only delta bundles"),
                "from": Key(Each(Either(("text", _DELTA)), "name"), "delta bundles, by release"),
            }
        )
        return _section(value, where, section)
    if isinstance(value, (list, tuple)):
        return [_source(one, where) for one in value]
    return _text(value, where)


_DELTA = Section(
    {
        "source": Key("text", "the delta bundle", needed="set it to the delta bundle"),
        "source_hash": Key("text", "what it has to hash to"),
    }
)
_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "text": _text,
    "number": _number,
    "seconds": _seconds,
    "count": _count,
    "positive": _positive,
    "flag": _flag,
    "line": _line,
    "value": _value,
    "regular expression": _expression,
    "command": _command,
    "shared": _shared,
    "source": _source,
}


# --- describing -----------------------------------------------------------------------------------

_STRING = {"type": "string", "minLength": 1}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "text": _STRING,
    "number": {"type": "number", "minimum": 0},
    "seconds": {"type": "number", "exclusiveMinimum": 0},
    "count": {"type": "integer", "minimum": 0},
    "positive": {"type": "integer", "minimum": 1},
    "flag": {"type": "boolean"},
    "line": {"type": ["string", "number"]},
    "value": {"type": ["string", "number"]},
    "regular expression": {"type": "string", "format": "regex"},
    "command": {"type": "string", "pattern": "/"},
    "shared": {
        "anyOf": [
            _STRING,
            {"type": "array", "items": _STRING},
            {"type": "object", "additionalProperties": {"type": "string", "pattern": "^/"}},
        ]
    },
    "source": {
        "anyOf": [
            _STRING,
            {"type": "array", "items": {"type": ["string", "object"]}},
            {"type": "object"},
        ]
    },
}


def _described(kind: Kind) -> dict[str, Any]:
    """The JSON schema of a kind."""
    if isinstance(kind, Section):
        described = {
            "type": "object",
            "properties": {
                key: {"description": one.about, **_described(one.kind)}
                for key, one in kind.keys.items()
            },
            "additionalProperties": False,
        }
        needed = [key for key, one in kind.keys.items() if one.needed]
        if needed:
            described["required"] = needed
        if kind.together:
            described["dependencies"] = {key: [*kind.together] for key in kind.together}
        return described
    if isinstance(kind, Variants):
        return {"oneOf": [_variant_described(kind.key, *one) for one in kind.sections.items()]}
    if isinstance(kind, Each):
        return {
            "type": "object",
            "propertyNames": {"pattern": f"^{_PATTERNS[kind.names][0]}$"},
            "additionalProperties": _described(kind.kind),
        }
    if isinstance(kind, Listed):
        one = _described(kind.kind)
        return {"anyOf": [one, {"type": "array", "items": one}]}
    if isinstance(kind, Choice):
        return {"enum": [*kind.words]}
    if isinstance(kind, Either):
        return {"anyOf": [_described(one) for one in kind.kinds]}
    if kind in _PATTERNS:
        types = ["string", "integer"] if kind in _NUMERIC else "string"
        return {"type": types, "pattern": f"^{_PATTERNS[kind][0]}$"}
    return dict(_SCHEMAS[kind])


def _variant_described(key: str, word: str, section: Section) -> dict[str, Any]:
    described = _described(section)
    described["properties"][key] = {"const": word}
    return described

"""
The pillar of the formula ``releases``: checked, and made complete.

An operator writes only what differs from app to app; the SLS files need everything, and in the form
in which states and configuration files take it. This module converts the one into the other.
Whatever is wrong with the pillar is reported in one sentence, with its key.
"""

from __future__ import annotations

import difflib
import json
import posixpath
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError
from salt.utils.args import get_function_argspec

if TYPE_CHECKING:
    from salt_dunders import __grains__, __opts__, __salt__

__virtualname__ = "releases_pillar"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\Z")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_-]*\Z")
_ADDRESS = re.compile(r"(?:\d+|(?:[\w.*-]+|\[[0-9a-fA-F:]+\]):\d+)\Z")
_HOST = re.compile(r"[\w*.-]+\Z")
_UPSTREAM = re.compile(
    r"(https?|uwsgi)://([\w.-]+|\[[0-9a-fA-F:]+\]):\d+\Z|(http|uwsgi)://unix:/\S+\Z"
)
# Sources that need no hash: this machine and Salt's own file server.
_TRUSTED = ("/", "salt://", "file://")
# Keys of an app that `virtualenv_relocated.managed` takes as they are.
_MANAGED = (
    "hard_links",
    "keep_source",
    "keyring",
    "gnupghome",
    "limits",
    "mode",
    "sig_backend",
    "signature",
    "signed_by_all",
    "signed_by_any",
    "skip_verify",
    "source_hash",
    "source_hash_name",
    "source_hash_sig",
)


def __virtual__() -> str:  # noqa: N807
    return __virtualname__


def settings(defaults: dict[str, Any] | None = None, pillar: Any = None) -> dict[str, Any]:
    """
    Return the formula's settings, complete and checked.

    defaults
        The content of the formula's ``defaults.yaml``.

    pillar
        The pillar below ``releases``. By default the minion's.

    Returns a dictionary: ``apps`` (what the SLS files need of each app, by name: of those in
    ``releases:only``, or of all), ``several`` (whether they are more than one, and ``only`` is not
    set), ``builds`` (the arguments of ``virtualenv_relocated.packed``, by bundle), ``to`` and
    ``leaving`` (the releases that a rollback switches to and from), ``with_data``, the settings of
    process managers and web servers, and ``problem``: ``None``, or what is wrong with the pillar;
    there are no apps and no builds then. Apps that ``only`` leaves out are not checked. Secrets are
    shown.

    CLI Example:

    .. code-block:: bash

        salt '*' releases_pillar.settings
    """
    try:
        return _settings(_pillar() if pillar is None else pillar, defaults or {})
    except _Wrong as wrong:
        return {"problem": str(wrong), "apps": {}, "builds": {}, "several": False}


def check(defaults: dict[str, Any] | None = None) -> bool:
    """
    Check whether the formula can work with the minion's pillar.

    defaults
        The content of the formula's ``defaults.yaml``.

    Raises ``CommandExecutionError`` with the key that is wrong, and why.

    CLI Example:

    .. code-block:: bash

        salt '*' releases_pillar.check
    """
    problem = settings(defaults)["problem"]
    if problem:
        raise CommandExecutionError(problem)
    return True


# --- what there is to set -------------------------------------------------------------------------


def _pillar() -> Any:
    """The pillar itself; from 3008 on, Salt shows stars to whoever does not render."""
    get = __salt__["pillar.get"]
    shown = {"unmask": True} if "unmask" in get_function_argspec(get).args else {}
    return get("releases", {}, **shown)


class _Wrong(Exception):
    """The pillar is wrong: one sentence with the key."""


def _settings(given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    top = _known(given, "releases", {**_TOP, **dict.fromkeys(_SERVERS, _mapping)})
    found: dict[str, Any] = {
        "problem": None,
        "to": top.get("to"),
        "leaving": top.get("leaving"),
        "with_data": top.get("with_data", False),
    }
    for server, names in _SERVERS.items():
        where = f"releases:{server}"
        own = _known(top.get(server, {}), where, dict.fromkeys(names, _text))
        found[server] = {**dict.fromkeys(names), **defaults.get(server, {}), **own}
    usual = defaults.get("app", {})
    apps = top.get("apps", {})
    # A run for one app may override its release in pillar; a release alone makes no app.
    there = [
        name
        for name, app in apps.items()
        if not (isinstance(app, Mapping) and set(app) == {"release"})
    ]
    for name in top.get("only", []):
        if name not in there:
            raise _Wrong(f"releases:only: {name} is no app of this minion: {_either(there)}")
    found["apps"] = {
        _matching(_WORD, name, f"releases:apps:{name}", "a name"): _app(name, app, usual, found)
        for name, app in apps.items()
        if name in top.get("only", apps)
    }
    _require_own_names(found["apps"])
    # A rollback and a removal need to know which app, where there are several.
    found["several"] = "only" not in top and len(apps) > 1
    found["builds"] = {
        bundle: _listed({**_mapping(build, f"releases:builds:{bundle}"), "name": bundle})
        for bundle, build in top.get("builds", {}).items()
    }
    return found


def _require_own_names(apps: Mapping[str, Any]) -> None:
    """Refuse what a process manager could not tell apart: shop's blog-web and shop-blog's web."""
    owners: dict[str, str] = {}
    for app in apps.values():
        for program in app["programs"].values():
            other = owners.setdefault(program["name"], app["name"])
            if other != app["name"]:
                raise _Wrong(
                    f"releases:apps:{app['name']}:programs:{program['short']} would be called "
                    f"{program['name']}, as one of {other} is: rename one of them"
                )


def _app(
    name: str, given: Any, usual: Mapping[str, Any], servers: Mapping[str, Any]
) -> dict[str, Any]:
    """All that the SLS files need of an app."""
    where = f"releases:apps:{name}"
    own = _known(given, where, {**_APP, **dict.fromkeys(_MANAGED, _anything)})
    _require_keys(own, where)
    app = {**usual, **own}
    app["root"] = root = app.get("root") or f"/srv/{name}"
    app["user"] = user = app.get("user") or name
    group = app.get("group") or user
    link, manager = f"{root}/current", app.get("manager", "supervisor")
    shared = _shared(app.get("shared") or {}, root)
    directories = sorted({target.rstrip("/") for target in shared.values() if target.endswith("/")})
    made = {
        "name": name,
        "release": app["release"],
        "root": root,
        "link": link,
        "path": f"{root}/{app['release']}",
        "user": user,
        "group": group,
        "keep": app.get("keep", 5),
        "packages": app.get("packages", []),
        "python": app.get("python"),
        "needs": {
            "user": _is_missing_user(user),
            "group": __salt__["file.group_to_gid"](group) == "",
            "python": _python_package(app.get("python")),
        },
        "directories": directories,
        "above": _above(directories, root),
        "managed": _listed(_managed(app, shared, where)),
        "migrations": _migrations(app, where),
        "manager": manager,
        "programs": {
            key: _program(name, key, one, f"{where}:programs", manager, link)
            for key, one in app.get("programs", {}).items()
        },
        "web": _web(app, where, link),
        "checks": app.get("checks", []),
        "health": _known(
            app.get("health", {}),
            f"{where}:health",
            dict.fromkeys(("attempts", "interval", "timeout"), _number),
        ),
    }
    made["files"] = list(_files(made, servers))
    made["running"] = _listed(_running(made, servers[manager]["command"]))
    made["runs"] = bool(made["programs"] or "apache" in made["web"])
    return made


def _require_keys(own: Mapping[str, Any], where: str) -> None:
    """Refuse an app without a release or a source."""
    for key in ("release", "source"):
        if key not in own:
            if key == "source" and "source_hash" in own:
                raise _Wrong(f"{where}:source_hash verifies nothing, as source is missing")
            raise _Wrong(f"{where}:{key} is missing: {_MISSING[key]}")


def _managed(app: Mapping[str, Any], shared: Mapping[str, str], where: str) -> dict[str, Any]:
    """The arguments of `virtualenv_relocated.managed`."""
    put_in = _put_in(app["release"])
    managed = {key: put_in(app[key]) for key in (*_MANAGED, "source") if key in app}
    _require_trust(managed, where)
    managed.update(
        name=f"{app['root']}/{app['release']}",
        shared={path.rstrip("/"): target.rstrip("/") for path, target in shared.items()},
        smoke=app.get("smoke"),
        python=app.get("python"),
        user=app.get("owner"),
        group=app.get("owner_group"),
    )
    # A user that bootstrap creates does not exist yet in a test.
    if managed["smoke"] and not (__opts__.get("test") and _is_missing_user(app["user"])):
        managed["smoke_user"] = app["user"]
    return {key: one for key, one in managed.items() if one not in (None, {}, [])}


def _migrations(app: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The arguments of `virtualenv_relocated.migrated`; none where nothing is migrated."""
    given = app.get("migrations")
    if not given:
        return []
    if "kind" not in given:
        raise _Wrong(f"{where}:migrations:kind is missing: django, alembic or commands")
    if "host" in given:
        _text(given["host"], f"{where}:migrations:host")
    return _listed({"user": app["user"], **given})


def _web(app: Mapping[str, Any], where: str, link: str) -> dict[str, Any]:
    """What the templates of the web servers need, by server."""
    web = {}
    for server, given in _known(
        app.get("web", {}), f"{where}:web", dict.fromkeys(_WEB, _mapping)
    ).items():
        here = f"{where}:web:{server}"
        one = {**dict.fromkeys(_WEB[server]), **_known(given, here, _WEB[server])}
        missing = [key for key in _NEEDED[server] if key not in given]
        if missing:
            raise _Wrong(f"{here}:{missing[0]} is missing: {_MISSING[missing[0]]}")
        static = one["static"] or {}
        one["static"] = {url: _below(link, directory) for url, directory in static.items()}
        web[server] = one
    return web


def _running(app: Mapping[str, Any], command: str) -> dict[str, Any]:
    """The arguments of `release_programs.running`."""
    keys = ("unit", "reload", "socket")
    return {
        "link": app["link"],
        "manager": app["manager"],
        "command": command,
        "programs": [{key: one[key] for key in keys} for one in app["programs"].values()],
        "scripts": [file["path"] for file in app["files"] if file["for"] == "wsgi"],
    }


def _is_missing_user(user: str) -> bool:
    return bool(__salt__["file.user_to_uid"](user) == "")


def _program(
    app: str, name: str, given: Any, where: str, manager: str, link: str
) -> dict[str, Any]:
    """A program, as the templates and the states take it."""
    here = f"{where}:{name}"
    _matching(_WORD, name, here, "a name")
    one = _known(given, here, _PROGRAM)
    if "command" not in one:
        raise _Wrong(f"{here}:command is missing: {_MISSING['command']}")
    words = shlex.split(one["command"])
    # `current` is looked up once, by `env`: all the rest - the working directory, the script, and
    # what both of them import - is below the directory that it pointed to. A program never mixes
    # two releases.
    words = ["/usr/bin/env", f"--chdir={link}", *words]
    full, bound = f"{app}-{name}", one.get("socket")
    environment = {key: str(value) for key, value in one.get("environment", {}).items()}
    if manager == "supervisor":
        if bound:  # it passes the socket as standard input; only gunicorn is configured for that
            more = environment.get("GUNICORN_CMD_ARGS", "")
            environment["GUNICORN_CMD_ARGS"] = f"--bind fd://0 {more}".strip()
        environment = {key: _enclosed(one, here) for key, one in environment.items()}
        line, unit = _supervised(shlex.join(words), here), f"{app}:{name}"
        if bound:  # a group of its own, of two that are restarted one after the other
            unit = f"{full}:*"
    else:
        environment = {key: _in_quotes(one) for key, one in environment.items()}
        line = " ".join(_argument(word) for word in words)
        unit = f"{full}.service"
    return {
        "name": full,
        "short": name,
        "unit": unit,
        "command": line,
        "environment": environment,
        "socket": bound,
        "reload": one.get("reload"),
        "stop_wait": one.get("stop_wait", 30),
        "user": one.get("user"),
    }


def _files(app: Mapping[str, Any], servers: Mapping[str, Any]) -> Any:
    """The configuration files of an app: where, from which template, and for which server."""
    name, manager, settings = app["name"], app["manager"], servers[app["manager"]]
    if manager == "supervisor" and app["programs"]:
        yield {
            "path": f"{settings['configs']}/{name}.conf",
            "template": "supervisor.conf",
            "for": manager,
            "mode": "0600",
            "context": {"settings": settings},
        }
    if manager == "systemd":
        for one in app["programs"].values():
            wanted = {"service": True, "socket": one["socket"], "env": one["environment"]}
            for kind in (kind for kind, needed in wanted.items() if needed):
                yield {
                    "path": f"{settings['configs']}/{one['name']}.{kind}",
                    "template": f"systemd.{kind}",
                    "for": manager,
                    "mode": "0600" if kind == "env" else "0644",
                    "context": {"program": one, "settings": settings},
                }
    for server, one in app["web"].items():
        yield {
            "path": f"{servers[server]['configs']}/{name}.conf",
            "template": f"{server}.conf",
            "for": server,
            "mode": "0644",
            "context": {"web": one},
        }
        if server == "apache":
            yield {
                "path": f"{app['root']}/{name}.wsgi",
                "template": "apache.wsgi",
                "for": "wsgi",
                "mode": "0644",
                "context": {"web": one},
            }


# --- values ---------------------------------------------------------------------------------------


def _known(given: Any, where: str, schema: Mapping[str, Callable[[Any, str], Any]]) -> Any:
    """A dictionary of known keys, with each value as its kind has it; empty ones are left out."""
    given = _mapping(given, where)
    made = {}
    for key, value in given.items():
        if key not in schema:
            near = difflib.get_close_matches(str(key), schema, 1)
            hint = f", did you mean {near[0]}?" if near else f": {_either(schema)}"
            raise _Wrong(f"unknown key {where}:{key}{hint}")
        if value is not None:
            made[key] = schema[key](value, f"{where}:{key}")
    return made


def _either(names: Any) -> str:
    return f"there are {', '.join(sorted(names))}" if names else "there are none"


def _anything(value: Any, where: str) -> Any:
    return value


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _Wrong(f"{where} must be a dictionary: {value!r}")
    return dict(value)


def _text(value: Any, where: str) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise _Wrong(f"{where} is read as the number {value}: put it into quotes")
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f"{where} must be a text: {value!r}")
    if not value.isprintable():  # a line of its own in a configuration file
        raise _Wrong(f"{where} must be one line of printable characters: {value!r}")
    return value


def _texts(value: Any, where: str) -> list[str]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [_text(one, where) for one in values]


def _number(value: Any, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        raise _Wrong(f"{where} must be a number: {value!r}")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"{where} must be true or false: {value!r}")
    return value


def _path(value: Any, where: str) -> str:
    path = _text(value, where)
    if not path.startswith("/") or re.search(r"[\s\"'%;{}]", path):
        raise _Wrong(f"{where} must be an absolute path without spaces or quotes: {value!r}")
    return path.rstrip("/")


def _matching(pattern: re.Pattern[str], value: Any, where: str, what: str) -> str:
    if not pattern.match(_text(value, where)):
        raise _Wrong(f"{where} must be {what}: {value!r}")
    return str(value)


def _name(value: Any, where: str) -> str:
    return _matching(_NAME, value, where, "a name, of letters, digits and . _ + -")


def _address(value: Any, where: str) -> str:
    return _matching(_ADDRESS, str(value), where, "a port, or an address and a port")


def _upstream(value: Any, where: str) -> str:
    return _matching(_UPSTREAM, value, where, "http:// or uwsgi:// with a host and a port")


def _size(value: Any, where: str) -> str:
    return _matching(re.compile(r"\d+[kKmMgG]?\Z"), str(value), where, "a size such as 10m")


def _names(value: Any, where: str) -> list[str]:
    return [_matching(_HOST, one, where, "a host's name") for one in _texts(value, where)]


def _static(value: Any, where: str) -> str:
    """A directory by its URL. Both end with a slash: else what lies beside it could be asked
    for."""
    url = where.partition(":static:")[2]
    for one in (url, _text(value, where)):
        if not re.match(r"[\w./~@+-]+/\Z", one) or ".." in one.split("/") or url[0] != "/":
            raise _Wrong(
                f"{where} must be a URL such as /static/ and a directory such as static/, each "
                f"with a slash at its end: {value!r}"
            )
    return str(value)


def _module(value: Any, where: str) -> str:
    return _matching(re.compile(r"[A-Za-z_][\w.]*\Z"), value, where, "a module such as shop.wsgi")


def _one_of(*names: str) -> Callable[[Any, str], str]:
    def chosen(value: Any, where: str) -> str:
        if value not in names:
            raise _Wrong(f"{where} must be {' or '.join(names)}: {value!r}")
        return str(value)

    return chosen


def _dictionary(kind: Callable[[Any, str], Any]) -> Callable[[Any, str], dict[str, Any]]:
    def checked(value: Any, where: str) -> dict[str, Any]:
        given = _mapping(value, where)
        return {str(key): kind(one, f"{where}:{key}") for key, one in given.items()}

    return checked


def _variable(value: Any, where: str) -> str:
    _matching(re.compile(r"[A-Za-z_]\w*\Z"), where.rpartition(":")[2], where, "a variable's name")
    if isinstance(value, bool):
        raise _Wrong(f"{where} is read as {value}: put it into quotes")
    return "" if value == "" else _text(str(value), where)


def _command(value: Any, where: str) -> str:
    command = _text(value, where)
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise _Wrong(f"{where} must be a command: {str(error).lower()}") from None
    if "/" not in words[0] or re.match(r"(?:[^/]+/)*current/", words[0].lstrip("/")):
        raise _Wrong(
            f"{where} must begin with a path in the release, such as bin/gunicorn, or one outside "
            f"of all releases: {words[0]}"
        )
    return command


def _shares(value: Any, where: str) -> Any:
    if isinstance(value, (list, tuple)):
        return _texts(value, where)
    return _dictionary(_shared_target)(value, where)


def _shared_target(value: Any, where: str) -> str:
    return _path(value, where) + ("/" if value.endswith("/") or where.endswith("/") else "")


def _checks(value: Any, where: str) -> list[Any]:
    checks = value if isinstance(value, (list, tuple)) else [value]
    for one in checks:
        if not isinstance(one, Mapping):
            _text(one, where)
    return list(checks)


def _source(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        known = _known(value, where, {"full": _anything, "from": _mapping})
        if "full" not in known:
            raise _Wrong(f"{where}:full is missing: the bundles in from only supplement it")
        return known
    if isinstance(value, (list, tuple)):
        return list(value)
    return _text(value, where)


def _require_trust(managed: Mapping[str, Any], where: str) -> None:
    """Refuse what `managed` would refuse, before anything is done."""
    source = managed["source"]
    source = source["full"] if isinstance(source, Mapping) else source
    for one in source if isinstance(source, list) else [source]:
        if isinstance(one, Mapping):  # a place with its hash
            continue
        ours = _text(one, f"{where}:source").startswith(_TRUSTED)
        if not (ours or managed.get("source_hash") or managed.get("skip_verify")):
            raise _Wrong(
                f"{where}:source_hash is missing: nothing verifies {one} "
                "(or set skip_verify to true)"
            )


def _listed(arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Arguments as a state takes them."""
    return [{key: value} for key, value in arguments.items()]


def _python_package(python: Any) -> str | None:
    """The system package with a Python of a version, where that is not installed."""
    if not re.match(r"\d+\.\d+\Z", str(python)) or shutil.which(f"python{python}"):
        return None
    family = __grains__.get("os_family")
    if family == "Suse":
        return f"python{python.replace('.', '')}"
    return f"python{python}" if family in ("Debian", "RedHat") else None


def _put_in(release: str) -> Callable[[Any], Any]:
    """A function that replaces `{release}` by the release's name."""

    def put_in(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{release}", release)
        if isinstance(value, Mapping):
            return {put_in(key): put_in(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [put_in(one) for one in value]
        return value

    return put_in


def _shared(given: Any, root: str) -> dict[str, str]:
    """The target of each shared path; both end with a slash where it is a directory to be
    created."""
    if isinstance(given, list):
        return {path: f"{root}/shared/{path}" for path in given}
    return dict(given)


def _above(directories: list[str], root: str) -> list[str]:
    """The directories that shared ones are in, as far as they are the app's to make.

    They belong to the user salt-minion runs as: whoever owns such a directory could replace the
    shared one by a symlink, and let root give away what that points to.
    """
    above = set()
    for directory in directories:
        parent = posixpath.dirname(directory)
        above.add(parent)
        while parent.startswith(f"{root}/"):
            above.add(parent)
            parent = posixpath.dirname(parent)
    return sorted(above - set(directories) - {root})


def _below(directory: str, path: str) -> str:
    return path if path.startswith("/") else f"{directory}/{path}"


def _supervised(text: str, where: str) -> str:
    """A text as supervisor's configuration has it, which has no syntax for some characters."""
    if re.search(r"\s[;#]|%\(here\)s", text):
        raise _Wrong(
            f"{where} cannot contain a ; or # after a space, or %(here)s: supervisor would not "
            "take it literally"
        )
    return text.replace("%", "%%")


def _enclosed(text: str, where: str) -> str:
    """A text in the quotes that supervisor knows: of either kind, without a way to escape one."""
    quote = "'" if '"' in text else '"'
    if quote in text or text.strip("'\"") != text:
        raise _Wrong(
            f"{where}:environment cannot have both kinds of quotes in a value, or one at its end: "
            "supervisor has no syntax for them"
        )
    return f"{quote}{_supervised(text, where)}{quote}"


def _in_quotes(text: str) -> str:
    """A text in systemd's quotes."""
    return json.dumps(text, ensure_ascii=False)


def _argument(word: str) -> str:
    """A word of a command, for systemd, which puts in variables and what begins with a %."""
    plain = re.match(r"[\w./:=@,+-]+\Z", word)
    return word if plain else _in_quotes(word).replace("%", "%%").replace("$", "$$")


# What to do where a required key is missing.
_MISSING = {
    "release": "set it to the release to deploy",
    "source": "set it to the archive, such as salt://shop/{release}.tar.gz",
    "command": "set it to what is to be run, such as bin/gunicorn shop.wsgi",
    "upstream": "set it to the program's address, such as http://127.0.0.1:8000",
    "wsgi": "set it to the application's module, such as shop.wsgi",
}
_TOP = {
    "apps": _mapping,
    "builds": _mapping,
    "only": _texts,
    "to": _name,
    "leaving": _name,
    "with_data": _flag,
}
_SERVERS = {
    "supervisor": ("command", "configs", "logs"),
    "systemd": ("command", "configs"),
    "nginx": ("configs", "reload"),
    "apache": ("configs", "reload"),
}
_APP: dict[str, Callable[[Any, str], Any]] = {
    "release": _name,
    "source": _source,
    "root": _path,
    "user": _name,
    "group": _name,
    "owner": _name,
    "owner_group": _name,
    "python": _text,
    "packages": _texts,
    "keep": _number,
    "smoke": _texts,
    "shared": _shares,
    "migrations": _mapping,
    "programs": _mapping,
    "manager": _one_of("supervisor", "systemd"),
    "web": _mapping,
    "checks": _checks,
    "health": _mapping,
}
_PROGRAM: dict[str, Callable[[Any, str], Any]] = {
    "command": _command,
    "environment": _dictionary(_variable),
    "reload": _one_of("HUP", "USR1", "USR2"),
    "socket": _address,
    "stop_wait": _number,
    "user": _name,
}
_WEB: dict[str, dict[str, Callable[[Any, str], Any]]] = {
    "nginx": {
        "listen": lambda value, where: [
            _address(one, where) for one in (value if isinstance(value, list) else [value])
        ],
        "names": _names,
        "upstream": _upstream,
        "static": _dictionary(_static),
        "certificate": _path,
        "key": _path,
        "body": _size,
    },
    "apache": {
        "listen": _address,
        "names": _names,
        "static": _dictionary(_static),
        "wsgi": _module,
        "processes": _number,
        "threads": _number,
    },
}
_NEEDED = {"nginx": ("upstream",), "apache": ("wsgi",)}

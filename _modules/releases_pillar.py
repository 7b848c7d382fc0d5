"""
The pillar of the formula ``releases``: checked, and made complete.

An operator writes only what differs from app to app; the SLS files want everything, and in the form
in which states and configuration files take it. What stands between them is here. Whatever is wrong
with the pillar is one sentence that names the key.
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
_VOUCHED = ("/", "salt://", "file://")
# What `virtualenv_relocated.managed` takes besides, as it is.
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
    Give the formula its settings, complete and checked.

    defaults
        What stands in the formula's ``defaults.yaml``.

    pillar
        What stands in the pillar under ``releases``, for who knows it; else the minion is asked.

    Returns a dictionary: ``apps`` (what the SLS files need of each app, by name: of those that
    ``releases:only`` names, or of all), ``several`` (whether they are more than one, and not
    named), ``builds`` (the arguments of ``virtualenv_relocated.packed``, by bundle), ``to`` and
    ``leaving`` (the releases that a rollback goes to and leaves), ``with_data``, the settings of
    process managers and web servers, and ``problem``: ``None``, or what is wrong with the pillar;
    there are no apps and no builds then. What is wrong with an app that is not named is not told.
    Secrets are shown.

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
    Tell whether the formula can work with the minion's pillar.

    defaults
        What stands in the formula's ``defaults.yaml``.

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
    """The pillar is wrong: one sentence that names the key."""


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
    # Whoever names an app for one run may give a release with it, and that alone makes no app.
    there = [
        name
        for name, app in apps.items()
        if not (isinstance(app, Mapping) and set(app) == {"release"})
    ]
    for name in top.get("only", []):
        if name not in there:
            raise _Wrong(f"releases:only names {name}, which is no app here: {_either(there)}")
    found["apps"] = {
        _matching(_WORD, name, f"releases:apps:{name}", "a name"): _app(name, app, usual, found)
        for name, app in apps.items()
        if name in top.get("only", apps)
    }
    _require_own_names(found["apps"])
    # Going back and clearing away are asked for by app, where there are several.
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
    for key in ("release", "source"):
        if key not in own:
            if key == "source" and "source_hash" in own:
                raise _Wrong(f"{where}:source_hash vouches for nothing, as source is missing")
            raise _Wrong(f"{where}:{key} is missing: {_MISSING[key]}")
    app = {**usual, **own}
    release, root = app["release"], app.get("root") or f"/srv/{name}"
    user = app.get("user") or name
    put_in = _put_in(release)
    managed = {key: put_in(app[key]) for key in (*_MANAGED, "source") if key in app}
    _require_trust(managed, where)
    shared = _shared(app.get("shared") or {}, root)
    managed["shared"] = {path.rstrip("/"): target.rstrip("/") for path, target in shared.items()}
    directories = sorted({target.rstrip("/") for target in shared.values() if target.endswith("/")})
    managed["smoke"] = app.get("smoke")
    needs_user = __salt__["file.user_to_uid"](user) == ""
    if managed["smoke"] and not (needs_user and __opts__.get("test")):  # who is made before that
        managed["smoke_user"] = user
    managed["python"] = app.get("python")
    managed["name"] = f"{root}/{release}"
    managed["user"], managed["group"] = app.get("owner"), app.get("owner_group")
    manager = app.get("manager", "supervisor")
    made = {
        "name": name,
        "release": release,
        "root": root,
        "link": f"{root}/current",
        "path": managed["name"],
        "user": user,
        "group": app.get("group") or user,
        "keep": app.get("keep", 5),
        "packages": app.get("packages", []),
        "python": app.get("python"),
        "needs": {
            "user": needs_user,
            "group": __salt__["file.group_to_gid"](app.get("group") or user) == "",
            "python": _python_package(app.get("python")),
        },
        "directories": directories,
        "above": _above(directories, root),
        "managed": _listed({key: one for key, one in managed.items() if one not in (None, {}, [])}),
        "migrations": [],
        "manager": manager,
        "programs": {
            key: _program(name, key, one, f"{where}:programs", manager, f"{root}/current")
            for key, one in app.get("programs", {}).items()
        },
        "web": {},
        "checks": app.get("checks", []),
        "health": _known(
            app.get("health", {}),
            f"{where}:health",
            dict.fromkeys(("attempts", "interval", "timeout"), _number),
        ),
    }
    if app.get("migrations"):
        made["migrations"] = _listed({"user": user, **app["migrations"]})
        if "kind" not in app["migrations"]:
            raise _Wrong(f"{where}:migrations:kind is missing: django, alembic or commands")
    web = _known(app.get("web", {}), f"{where}:web", dict.fromkeys(_WEB, _mapping))
    for server, one in web.items():
        here = f"{where}:web:{server}"
        made["web"][server] = {**dict.fromkeys(_WEB[server]), **_known(one, here, _WEB[server])}
        missing = [key for key in _NEEDED[server] if key not in one]
        if missing:
            raise _Wrong(f"{here}:{missing[0]} is missing: {_MISSING[missing[0]]}")
        made["web"][server]["static"] = {
            url: _below(f"{root}/current", directory)
            for url, directory in one.get("static", {}).items()
        }
    made["files"] = list(_files(made, servers))
    told = ("unit", "reload", "socket")
    made["running"] = _listed(
        {
            "link": made["link"],
            "manager": manager,
            "command": servers[manager]["command"],
            "programs": [{key: one[key] for key in told} for one in made["programs"].values()],
            "scripts": [file["path"] for file in made["files"] if file["for"] == "wsgi"],
        }
    )
    made["runs"] = bool(made["programs"] or "apache" in made["web"])
    return made


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
        if bound:  # it gives the socket as standard input; what is not gunicorn is to be told
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
    """The configuration files of an app: where, out of which template, and for whom."""
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
            hint = f"did you mean {near[0]}?" if near else _either(schema)
            raise _Wrong(f"{where}:{key} is no setting: {hint}")
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
    if not _text(value, where).startswith("/") or re.search(r"[\s\"'%;{}]", value):
        raise _Wrong(f"{where} must be an absolute path without spaces or quotes: {value!r}")
    return value.rstrip("/")


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
    try:
        words = shlex.split(_text(value, where))
    except ValueError as error:
        raise _Wrong(f"{where} must be a command: {str(error).lower()}") from None
    if "/" not in words[0] or re.match(r"(?:[^/]+/)*current/", words[0].lstrip("/")):
        raise _Wrong(
            f"{where} must begin with a path in the release, such as bin/gunicorn, or one outside "
            f"of all releases: {words[0]}"
        )
    return value


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
            raise _Wrong(f"{where}:full is missing: from names bundles besides that one only")
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
        ours = _text(one, f"{where}:source").startswith(_VOUCHED)
        if not (ours or managed.get("source_hash") or managed.get("skip_verify")):
            raise _Wrong(
                f"{where}:source_hash is missing: nothing vouches for {one} "
                "(or set skip_verify to true)"
            )


def _listed(arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Arguments as a state takes them."""
    return [{key: value} for key, value in arguments.items()]


def _python_package(python: Any) -> str | None:
    """What brings a Python of a version, where it is not there."""
    if not re.match(r"\d+\.\d+\Z", str(python)) or shutil.which(f"python{python}"):
        return None
    family = __grains__.get("os_family")
    if family == "Suse":
        return f"python{python.replace('.', '')}"
    return f"python{python}" if family in ("Debian", "RedHat") else None


def _put_in(release: str) -> Callable[[Any], Any]:
    """What puts the release's name wherever `{release}` stands."""

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
    """Where each shared path leads; the end of both is a slash where it is a directory to be
    made."""
    if isinstance(given, list):
        return {path: f"{root}/shared/{path}" for path in given}
    return dict(given)


def _above(directories: list[str], root: str) -> list[str]:
    """The directories that shared ones are in, as far as they are the app's to make.

    They are the minion's own: whoever owns such a directory could put a link in the place of the
    shared one, and let root give away what that points to.
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
    """A text as supervisor's configuration has it: it knows no way to write these signs."""
    if re.search(r"\s[;#]|%\(here\)s", text):
        raise _Wrong(
            f"{where} cannot have a ; or # after a space, or %(here)s: supervisor would not take "
            "it as it stands"
        )
    return text.replace("%", "%%")


def _enclosed(text: str, where: str) -> str:
    """A text in the quotes that supervisor knows: of either kind, without a way to escape one."""
    quote = "'" if '"' in text else '"'
    if quote in text or text.strip("'\"") != text:
        raise _Wrong(
            f"{where}:environment cannot have both kinds of quotes in a value, or one at its end: "
            "supervisor knows no way to write them"
        )
    return f"{quote}{_supervised(text, where)}{quote}"


def _in_quotes(text: str) -> str:
    """A text in systemd's quotes."""
    return json.dumps(text, ensure_ascii=False)


def _argument(word: str) -> str:
    """A word of a command, for systemd, which puts in variables and what begins with a %."""
    plain = re.match(r"[\w./:=@,+-]+\Z", word)
    return word if plain else _in_quotes(word).replace("%", "%%").replace("$", "$$")


# What is to be said where a key has to be there and is not.
_MISSING = {
    "release": "name what is to be deployed",
    "source": "name the archive, such as salt://shop/{release}.tar.gz",
    "command": "name what is to be run, such as bin/gunicorn shop.wsgi",
    "upstream": "name what answers, such as http://127.0.0.1:8000",
    "wsgi": "name the application's module, such as shop.wsgi",
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

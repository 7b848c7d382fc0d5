"""
The pillar of the formula ``releases``: checked, and made complete.

An operator writes only what differs from app to app; the SLS files need everything, and in the form
in which states and configuration files take it. This module converts the one into the other.
Whatever is wrong with the pillar is reported in one sentence, with its key.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from salt.exceptions import CommandExecutionError
from salt.utils.args import get_function_argspec

if TYPE_CHECKING:
    from salt_dunders import __opts__, __salt__

__virtualname__ = "releases_pillar"

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
    "source",
    "source_hash",
    "source_hash_name",
    "source_hash_sig",
)
_SERVERS = ("supervisor", "systemd", "nginx", "apache")


def __virtual__() -> str:  # noqa: N807
    return __virtualname__


def settings(defaults: dict[str, Any] | None = None, pillar: Any = None) -> dict[str, Any]:
    """
    Return the formula's settings, complete and checked.

    defaults
        The content of the formula's ``defaults.yaml`` and ``osfamilymap.yaml``, merged.

    pillar
        The pillar below ``releases``. By default the minion's.

    Returns a dictionary: ``apps`` (what the SLS files need of each app, by name: of those in
    ``releases:run:app``, or of all), ``several`` (whether they are more than one, and ``run:app``
    is not set), ``builds`` (the arguments of ``virtualenv_relocated.packed``, by bundle), ``run``
    (the arguments of this run), the settings of process managers and web servers, ``retired`` (the
    arguments of ``release_programs.retired``), and ``problem``: ``None``, or what is wrong with the
    pillar; there are no apps and no builds then. Apps that ``run:app`` leaves out are not checked.
    Secrets are shown.

    CLI Example:

    .. code-block:: bash

        salt '*' releases_pillar.settings
    """
    try:
        return _settings(_pillar() if pillar is None else pillar, defaults or {})
    except CommandExecutionError as wrong:
        return {"problem": str(wrong), "apps": {}, "builds": {}, "retired": [], "several": False}


def check(defaults: dict[str, Any] | None = None) -> bool:
    """
    Check whether the formula can work with the minion's pillar.

    defaults
        As for :py:func:`settings`.

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


def _settings(given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    top = __salt__["releases_schema.checked"](given)
    run = {"app": None, "to": None, "from": None, "purge_data": False, **top.get("run", {})}
    found: dict[str, Any] = {"problem": None, "run": run}
    for server in _SERVERS:
        found[server] = {**_UNSET[server], **defaults.get(server, {}), **top.get(server, {})}
    usual = defaults.get("app", {})
    apps = top.get("apps", {})
    found["apps"] = {name: _app(name, {**usual, **app}, found) for name, app in apps.items()}
    _require_own_names(found["apps"])
    # A rollback and a removal need to know which app, where there are several.
    found["several"] = run["app"] is None and len(apps) > 1
    found["builds"] = {
        bundle: _listed({**build, "name": bundle})
        for bundle, build in top.get("builds", {}).items()
    }
    found["retired"] = _retired(found, "apps" in top)
    return found


def _require_own_names(apps: Mapping[str, Any]) -> None:
    """Refuse programs that would have one name: shop's blog-web and shop-blog's web."""
    owners: dict[str, str] = {}
    for app in apps.values():
        for program in app["programs"].values():
            other = owners.setdefault(program["name"], app["name"])
            if other != app["name"]:
                raise CommandExecutionError(
                    f"releases:apps:{app['name']}:programs:{program['short']} would be called "
                    f"{program['name']}, as one of {other} is: rename one of them"
                )


def _retired(found: Mapping[str, Any], is_known: bool) -> list[dict[str, Any]]:
    """The arguments of `release_programs.retired`; none without `apps` in the pillar.

    A pillar without it is more likely to have failed to arrive than to mean that all should stop.
    """
    if not is_known:
        return []
    files = [file["path"] for app in found["apps"].values() for file in app["files"]]
    servers = {server: found[server] for server in _SERVERS if found[server].get("conf_dir")}
    return _listed(
        {
            "files": sorted(files),
            "servers": servers,
            "apps": found["run"]["app"],
            "pillarenv": _pillarenv(),
        }
    )


def _pillarenv() -> str:
    """Which environment the pillar is from: one does not know the apps of another one."""
    return str(__opts__.get("pillarenv") or "base")


def _app(name: str, app: Mapping[str, Any], servers: Mapping[str, Any]) -> dict[str, Any]:
    """All that the SLS files need of an app."""
    where = f"releases:apps:{name}"
    root = app.get("root") or f"/srv/{name}"
    user = app.get("user") or name
    group = app.get("group") or user
    link, manager = f"{root}/current", app.get("process_manager", "supervisor")
    directories = _targets(app.get("shared_dirs", {}), root)
    files = _targets(app.get("shared_files", {}), root)
    health = dict(app.get("health", {}))
    made = {
        "name": name,
        "pillarenv": _pillarenv(),
        "release": app["release"],
        "root": root,
        "link": link,
        "path": f"{root}/{app['release']}",
        "is_active": posixpath.islink(link),
        "user": user,
        "group": group,
        "keep_releases": app.get("keep_releases", 5),
        "os_packages": app.get("os_packages", []),
        "python": _put_in(app["release"])(app.get("python")),
        "needs": {
            "user": _is_missing_user(user),
            "group": __salt__["file.group_to_gid"](group) == "",
            "python": _python_package(app.get("python"), app.get("python_package")),
        },
        "directories": sorted(directories.values()),
        "above": _above(sorted(directories.values()), sorted(files.values()), root),
        "managed": _listed(_managed(app, {**directories, **files}, user, root, where)),
        "migrations": _migrations(app, user),
        "process_manager": manager,
        "programs": {
            key: _program(name, key, one, f"{where}:programs", manager, link)
            for key, one in app.get("programs", {}).items()
        },
        "web": _web(app, link),
        "checks": health.pop("checks", []),
        "health": health,
    }
    made["files"] = list(_files(made, servers))
    made["running"] = _listed(_running(made, servers[manager]["command"]))
    made["runs"] = bool(made["programs"] or "apache" in made["web"])
    return made


def _targets(given: Mapping[str, Any], root: str) -> dict[str, str]:
    """The target of each shared path."""
    return {path: target or f"{root}/shared/{path}" for path, target in given.items()}


def _managed(
    app: Mapping[str, Any], shared: Mapping[str, str], user: str, root: str, where: str
) -> dict[str, Any]:
    """The arguments of `virtualenv_relocated.managed`."""
    managed = {key: app[key] for key in _MANAGED if key in app}
    managed.update(
        shared=shared,
        smoke=app.get("smoke_tests"),
        python=app.get("python"),
        user=app.get("file_owner"),
        group=app.get("file_group"),
    )
    managed = _put_in(app["release"])(managed)
    _require_trust(managed, where)
    # A user that bootstrap creates does not exist yet in a test.
    if managed["smoke"] and not (__opts__.get("test") and _is_missing_user(user)):
        managed["smoke_user"] = user
    managed["name"] = f"{root}/{app['release']}"
    return {key: one for key, one in managed.items() if one not in (None, {}, [])}


def _migrations(app: Mapping[str, Any], user: str) -> list[dict[str, Any]]:
    """The arguments of `virtualenv_relocated.migrated`; none where nothing is migrated."""
    given = app.get("migrations")
    return _listed({"user": user, **_put_in(app["release"])(given)}) if given else []


def _web(app: Mapping[str, Any], link: str) -> dict[str, Any]:
    """What the templates of the web servers need, by server."""
    web = {}
    for server, given in app.get("web", {}).items():
        static = given.get("static", {})
        one = {**dict.fromkeys(_WEB_KEYS), **given}
        one["static"] = {url: _below(link, directory) for url, directory in static.items()}
        web[server] = one
    return web


def _running(app: Mapping[str, Any], command: str) -> dict[str, Any]:
    """The arguments of `release_programs.running`."""
    keys = ("unit", "reload", "socket")
    return {
        "app": app["name"],
        "link": app["link"],
        "manager": app["process_manager"],
        "command": command,
        "programs": [{key: one[key] for key in keys} for one in app["programs"].values()],
        "scripts": [file["path"] for file in app["files"] if file["for"] == "wsgi"],
    }


def _is_missing_user(user: str) -> bool:
    return bool(__salt__["file.user_to_uid"](user) == "")


def _program(
    app: str, name: str, one: Mapping[str, Any], where: str, manager: str, link: str
) -> dict[str, Any]:
    """A program, as the templates and the states take it."""
    here = f"{where}:{name}"
    words = shlex.split(one["command"])
    # `current` is looked up once, by `env`: all the rest - the working directory, the script, and
    # what both of them import - is below the directory that it pointed to. A program never mixes
    # two releases.
    words = ["/usr/bin/env", f"--chdir={link}", *words]
    full, bound = f"{app}-{name}", one.get("socket")
    environment = dict(one.get("env", {}))
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
        "env": environment,
        "socket": bound,
        "reload": one.get("reload_signal"),
        "stop_timeout": one.get("stop_timeout", 30),
        "user": one.get("user"),
    }


def _files(app: Mapping[str, Any], servers: Mapping[str, Any]) -> Iterator[Any]:
    """The configuration files of an app: where, from which template, and for which server."""
    name, manager, settings = app["name"], app["process_manager"], servers[app["process_manager"]]
    if manager == "supervisor" and app["programs"]:
        yield {
            "path": f"{settings['conf_dir']}/{name}{settings['conf_suffix']}",
            "template": "supervisor.conf",
            "for": manager,
            "mode": "0600",
            "context": {"settings": settings},
        }
    if manager == "systemd":
        for one in app["programs"].values():
            wanted = {"service": True, "socket": one["socket"], "env": one["env"]}
            for kind in (kind for kind, needed in wanted.items() if needed):
                yield {
                    "path": f"{settings['conf_dir']}/{one['name']}.{kind}",
                    "template": f"systemd.{kind}",
                    "for": manager,
                    "mode": "0600" if kind == "env" else "0644",
                    "context": {"program": one, "settings": settings},
                }
    for server, one in app["web"].items():
        yield {
            "path": f"{servers[server]['conf_dir']}/{name}.conf",
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


def _require_trust(managed: Mapping[str, Any], where: str) -> None:
    """Refuse what `managed` would refuse, before anything is done."""
    source = managed["source"]
    source = source["full"] if isinstance(source, Mapping) else source
    for one in source if isinstance(source, list) else [source]:
        if isinstance(one, Mapping):  # a place with its hash
            continue
        ours = one.startswith(_TRUSTED)
        if not (ours or managed.get("source_hash") or managed.get("skip_verify")):
            raise CommandExecutionError(
                f"{where}:source_hash is missing: nothing verifies {one} "
                "(or set skip_verify to true)"
            )


def _listed(arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Arguments as a state takes them."""
    return [{key: value} for key, value in arguments.items()]


def _python_package(python: Any, pattern: str | None) -> str | None:
    """The system package with a Python of a version, where that is not installed."""
    version = re.match(r"(\d+)\.(\d+)\Z", str(python))
    if not version or not pattern or shutil.which(f"python{python}"):
        return None
    return pattern.format(major=version[1], minor=version[2])


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


def _above(directories: list[str], files: list[str], root: str) -> list[str]:
    """The directories that shared ones and files are in, as far as they are the app's to make.

    They belong to the user salt-minion runs as: whoever owns such a directory could replace the
    shared one by a symlink, and let root give away what that points to.
    """
    above = set()
    for path in [*directories, *files]:
        parent = posixpath.dirname(path)
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
        raise CommandExecutionError(
            f"{where} cannot contain a ; or # after a space, or %(here)s: supervisor would not "
            "take it literally"
        )
    return text.replace("%", "%%")


def _enclosed(text: str, where: str) -> str:
    """A text in the quotes that supervisor knows: of either kind, without a way to escape one."""
    quote = "'" if '"' in text else '"'
    if quote in text or text.strip("'\"") != text:
        raise CommandExecutionError(
            f"{where}:env cannot have both kinds of quotes in a value, or one at its end: "
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


# What the templates and the SLS files may look at without having been set.
_WEB_KEYS = (
    "client_max_body_size",
    "listen",
    "processes",
    "server_names",
    "ssl_certificate",
    "ssl_certificate_key",
    "static",
    "threads",
)
_UNSET: dict[str, dict[str, Any]] = {
    "supervisor": {"command": None, "conf_dir": None, "conf_suffix": ".conf", "log_dir": None},
    "systemd": {"command": None, "conf_dir": None},
    "nginx": {"conf_dir": None, "reload_command": None},
    "apache": {"conf_dir": None, "reload_command": None},
}

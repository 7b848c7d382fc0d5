"""The table of the pillar's keys and its schema: they refuse what is wrong, at every level."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any

import pytest

from relocate_core.builds.options import Options
from relocate_core.bundles.limits import Limits
from relocate_core.releases.schemas.recipe import Recipe
from tests.support import minions, sites
from tests.support.minions import CHECKOUT, Masterless

pytest.importorskip("salt", reason="Salt does not run on this Python")

import importlib.util

import salt.utils.args
from salt.exceptions import CommandExecutionError

GENERATOR = CHECKOUT / "docs" / "pillar.py"


def loaded() -> ModuleType:
    """The module with the table."""
    spec = importlib.util.spec_from_file_location("pillar_docs", GENERATOR)
    assert spec
    assert spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    module: ModuleType = generator.table()
    return module


TABLE = loaded()
MIGRATION = {
    "host": "web1",
    "env": {"A": "1"},
    "user": "shop",
    "cwd": "src",
    "timeout": 5,
    "wait": 0,
}
PROGRAM = {
    "command": "bin/gunicorn shop.wsgi",
    "socket": "127.0.0.1:8000",
    "env": {"A": "1"},
    "reload_signal": "HUP",
    "stop_timeout": 30,
    "user": "shop",
}
SHOP = {
    "release": "1",
    "source": "salt://shop/{release}.tar.gz",
    "root": "/srv/shop",
    "user": "shop",
    "group": "shop",
    "file_owner": "root",
    "file_group": "root",
    "python": "3.11",
    "os_packages": ["libpq5"],
    "keep_releases": 5,
    "smoke_tests": ["python -c 'import shop'"],
    "shared_dirs": {"media": "/data/media"},
    "shared_files": ["etc/local.py"],
    "migrations": {"kind": "django", "manage": "a", "settings": "b", "database": "c", **MIGRATION},
    "programs": {"web": PROGRAM},
    "process_manager": "systemd",
    "web": {
        "nginx": {
            "listen": [80, "[::1]:81"],
            "server_names": ["shop.example.org"],
            "upstream": "http://127.0.0.1:8000",
            "static": {"/static/": "static/"},
            "ssl_certificate": "/etc/ssl/a.pem",
            "ssl_certificate_key": "/etc/ssl/a.key",
            "client_max_body_size": "10m",
        },
        "apache": {
            "listen": 8001,
            "server_names": "shop.example.org",
            "static": {"/static/": "/srv/static/"},
            "wsgi_module": "shop.wsgi",
            "processes": 2,
            "threads": 15,
        },
    },
    "health": {
        "checks": [
            "http://127.0.0.1:8000/",
            {"url": "http://127.0.0.1:8000/", "status": 200, "match": "a.*b"},
            {"cmd": "true", "user": "shop"},
        ],
        "attempts": 10,
        "interval": 0,
        "timeout": 0.5,
    },
    "source_hash": "abc",
    "source_hash_name": "a",
    "skip_verify": False,
    "signature": ["a"],
    "source_hash_sig": True,
    "signed_by_any": "a",
    "signed_by_all": ["a"],
    "keyring": "/a",
    "gnupghome": "/a",
    "sig_backend": "gpg",
    "keep_source": True,
    "hard_links": True,
    "limits": {"files": 1, "size": 1, "ratio": 1},
    "mode": "0755",
}
BUILD = {
    "requirements": "a.txt",
    "project": "/srv/src",
    "pip_packages": ["gunicorn>=22"],
    "wheels": ["a.whl"],
    "find_links": ["/a"],
    "index": "https://pypi.example.org",
    "extra_index": [],
    "no_index": False,
    "require_hashes": True,
    "system_site_packages": True,
    "constraints": ["a.txt"],
    "python": "3.11",
    "tool": "uv",
    "installer": "uv",
    "delta_from": 2,
    "exclude": ["*.po"],
    "prefix": "/srv/shop/1",
    "bytecode": "checked-hash",
    "level": 3,
    "commit": "abc",
    "env": {"A": ""},
    "cache": "/var/cache/a",
    "force": False,
    "wait": 0,
}
FULL: dict[str, Any] = {
    "apps": {
        "shop": SHOP,
        "blog": {
            "release": "1",
            "source": {"full": "/a.tar", "from": {"0": "/b.tar"}},
            "python": {"source": "salt://python.tar", "source_hash": "abc"},
            "migrations": {"kind": "alembic", "config": "a.ini", **MIGRATION},
        },
        "store": {
            "release": "1",
            "source": ["salt://a.tar"],
            "migrations": {
                "kind": "commands",
                "version": "a",
                "up": "b",
                "down": "c",
                "check": "d",
                **MIGRATION,
            },
        },
    },
    "builds": {"/srv/salt/shop/{commit}.tar.gz": BUILD},
    "run": {"app": ["shop", "blog", "store"], "to": "1", "from": "2", "purge_data": True},
    "supervisor": {
        "command": "supervisorctl -c /a",
        "conf_dir": "/a",
        "conf_suffix": ".ini",
        "log_dir": "/b",
    },
    "systemd": {"command": "systemctl", "conf_dir": "/a"},
    "nginx": {"conf_dir": "/a", "reload_command": "nginx -t"},
    "apache": {"conf_dir": "/a", "reload_command": "true"},
}
"""A pillar with every key that there is."""


def places(
    value: Any, kind: Any, path: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Each value in a pillar and its kind, with the keys that lead there."""
    if isinstance(kind, TABLE.Variants):
        kind = kind.sections[value[kind.key]]
    yield path, kind
    if isinstance(kind, TABLE.Section):
        for key, one in value.items():
            yield from places(one, kind.keys[key].kind, (*path, key))
    elif isinstance(kind, TABLE.Each):
        for key, one in value.items():
            yield from places(one, kind.kind, (*path, key))


PLACES = list(places(FULL, TABLE.TOP))
SECTIONS = [(path, kind) for path, kind in PLACES if isinstance(kind, TABLE.Section)]


def named(path: tuple[Any, ...]) -> str:
    return ":".join(["releases", *map(str, path)])


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The pillar with another value at a place."""
    pillar = json.loads(json.dumps(FULL))  # in which no two places are one object
    inner: Any = pillar
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return pillar


def problem(pillar: Any) -> str:
    """What is wrong with a pillar, which has to be one sentence."""
    with pytest.raises(CommandExecutionError) as raised:
        TABLE.checked(pillar)
    assert minions.sentence(str(raised.value))
    return str(raised.value)


@pytest.fixture(scope="module")
def validator() -> Any:
    """The JSON schema, ready to validate."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((CHECKOUT / "pillar.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_the_files_are_what_the_table_has() -> None:
    done = subprocess.run([sys.executable, str(GENERATOR), "--check"], capture_output=True)
    assert done.returncode == 0, f"run `make docs`: {done.stdout.decode()}{done.stderr.decode()}"


def test_the_example_is_right(validator: Any) -> None:
    TABLE.checked(sites.example()["releases"])
    validator.validate(sites.example())


def test_every_key_that_there_is(validator: Any) -> None:
    used = {(id(kind), path[-1]) for path, _ in PLACES[1:] for kind in [within(path)]}
    missing = [
        named((*path, key))
        for path, kind in SECTIONS
        for key in kind.keys
        if (id(kind), key) not in used
    ]
    assert not missing
    assert set(TABLE.checked(FULL)["apps"]) == set(FULL["apps"])
    validator.validate({"releases": FULL})


def within(path: tuple[Any, ...]) -> Any:
    """The section that a value is in."""
    return dict(PLACES)[path[:-1]]


@pytest.mark.parametrize("path", [path for path, _ in SECTIONS], ids=named)
def test_an_unknown_key_at_every_level(path: tuple[Any, ...], validator: Any) -> None:
    wrong = changed((*path, "zzz"), "1")
    assert problem(wrong).startswith(f"unknown key {named(path)}:zzz: there are ")
    assert not validator.is_valid({"releases": wrong})


def test_an_unknown_key_of_a_check(validator: Any) -> None:
    for check, hint in (
        ({"url": "http://a/", "statsu": 200}, "statsu, did you mean status?"),
        ({"cmd": "true", "usr": "a"}, "usr, did you mean user?"),
        ({"cmd": "true", "match": "a"}, "match: there are cmd, user"),
        ({"url": "http://a/", "user": "a"}, "user: there are match, status, url"),
    ):
        wrong = changed(("apps", "shop", "health", "checks"), [check])
        assert problem(wrong) == f"unknown key releases:apps:shop:health:checks:{hint}"
        assert not validator.is_valid({"releases": wrong})


@pytest.mark.parametrize("path", [path for path, _ in PLACES[1:]], ids=named)
@pytest.mark.parametrize("value", [{"a": [1]}, [[1]], "", 1.5j], ids=["dict", "list", "", "other"])
@pytest.mark.few(150)
def test_a_value_of_the_wrong_type_at_every_level(path: tuple[Any, ...], value: Any) -> None:
    kind = dict(PLACES)[path]
    if (value == "" and kind in ("line", "value")) or (
        isinstance(value, dict) and isinstance(kind, TABLE.Each)
    ):
        return  # which is right there, or has a message about what is in it
    assert named(path) in problem(changed(path, value))


@pytest.mark.parametrize("path", [path for path, _ in PLACES[1:]], ids=named)
def test_the_schema_refuses_a_wrong_type_too(path: tuple[Any, ...], validator: Any) -> None:
    assert not validator.is_valid({"releases": changed(path, [[1]])})


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [(path, old, new) for path, kind in SECTIONS for old, new in kind.renamed.items()],
    ids=lambda one: named(one) if isinstance(one, tuple) else one,
)
def test_an_old_key_names_the_new_one(path: tuple[Any, ...], old: str, new: str) -> None:
    assert problem(changed((*path, old), "1")) == f"unknown key {named(path)}:{old}, use {new}"


def test_a_certificate_needs_its_key(validator: Any) -> None:
    nginx = ("apps", "shop", "web", "nginx")
    keys = ("ssl_certificate", "ssl_certificate_key")
    for missing, other in (keys, keys[::-1]):
        wrong = changed((*nginx, missing), None)
        assert problem(wrong) == (
            f"{named(nginx)}:{missing} is missing: {other} is not used without it"
        )
        del wrong["apps"]["shop"]["web"]["nginx"][missing]
        assert not validator.is_valid({"releases": wrong})


def test_a_secret_is_not_in_a_message() -> None:
    path = ("apps", "shop", "programs", "web", "env", "PASSWORD")
    assert problem(changed(path, "secret\nsecret")) == (
        f"{named(path)} must be one line of printable characters"
    )


def test_shared_paths() -> None:
    for key, value, words in (
        ("shared_files", ["media/"], "has files only: put media/ into shared_dirs"),
        ("shared_dirs", ["../media"], "must be paths in the release, such as var: '../media'"),
        ("shared_dirs", ["/media"], "must be paths in the release, such as var: '/media'"),
    ):
        assert problem(changed(("apps", "shop", key), value)) == f"releases:apps:shop:{key} {words}"


@pytest.mark.parametrize(
    ("python", "words"),
    [
        (3.11, " is read as the number 3.11: put it into quotes"),
        ({"source": "salt://python.tar"}, ":source_hash is missing: set it, as nothing is run"),
        ({"source_hash": "abc"}, ":source_hash verifies nothing, as source is missing"),
    ],
)
def test_a_python(python: Any, words: str) -> None:
    found = problem(changed(("apps", "shop", "python"), python))
    assert found.startswith(f"releases:apps:shop:python{words}")


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The execution functions of a minion."""
    return Masterless(tmp_path_factory.mktemp("minion")).functions


def test_a_python_is_passed_on(functions: Any) -> None:
    python = {"source": "salt://pythons/{release}.tar", "source_hash": "abc"}
    app = {"release": "1", "source": "salt://{release}.tar", "python": python}
    settings = functions["releases_pillar.settings"]
    (shop,) = settings(pillar={"apps": {"shop": app}})["apps"].values()
    assert {"python": {**python, "source": "salt://pythons/1.tar"}} in shop["managed"]
    assert shop["needs"]["python"] is None


def test_the_keys_are_those_of_the_functions(functions: Any) -> None:
    """What the formula passes on is what the states and the functions take."""

    def takes(name: str) -> set[str]:
        return set(salt.utils.args.get_function_argspec(functions[name]).args)

    state = {"keep_source", "signature", "source_hash_name", "source_hash_sig", "keyring"}
    state |= {"skip_verify", "sig_backend", "signed_by_any", "signed_by_all", "gnupghome"}
    assert set(TABLE.MANAGED) - state <= takes("virtualenv_tools.unpack")
    assert set(TABLE.MANAGED["limits"].kind.keys) == {one.name for one in fields(Limits)}
    ours = {"archive", "saltenv", "test", "options"}
    options = {one.name for one in fields(Options)}
    assert set(TABLE.BUILD.keys) == (takes("virtualenv_tools.build") | options) - ours
    keys = {key for one in TABLE.MIGRATIONS.sections.values() for key in one.keys}
    assert keys == takes("virtualenv_tools.migrate") - {"path", "test"}
    for kind, section in TABLE.MIGRATIONS.sections.items():
        values = {"version": "a", "up": "b", "down": "c {version}", "manage": None}
        given = {
            key: values.get(key, "a") for key in section.keys if key not in ("kind", "wait", "host")
        }
        given.update(env={}, timeout=1)
        del given["user"]
        Recipe.of(kind, **given)

"""The formula `releases` with real process managers and web servers, asked under load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import environments, minions, sites, systemd
from tests.support.minions import CHECKOUT, Masterless
from tests.support.sites import BROKEN, ME, MY_GROUP, RELEASES, Load, Site, ended, free_port

pytest.importorskip("salt", reason="Salt does not run on this Python")

FIRST, SECOND, THIRD = RELEASES
# One that any user may run: that of the tests may be in somebody's home.
PYTHON = "/usr/bin/python3" if os.path.exists("/usr/bin/python3") else sys.executable
MODULES = Path("/usr/lib/apache2/modules")
# What its master does at a TERM is to start again, and with `--die-on-term` to drop what it does.
UWSGI = (
    "bin/uwsgi --master --processes 2 --module shop.wsgi "
    "--hook-master-start 'unix_signal:15 gracefully_kill_them_all'"
)
SUPERVISORD = """
[supervisord]
pidfile={directory}/supervisord.pid
logfile={directory}/supervisord.log
childlogdir={directory}
[unix_http_server]
file={directory}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{directory}/supervisor.sock
[include]
files={directory}/conf.d/*.conf
"""
APACHE = """
ServerRoot {directory}
ServerName localhost
PidFile {directory}/pid
DefaultRuntimeDir {directory}
Mutex file:{directory}
ErrorLog {directory}/log
User www-data
Group www-data
{modules}
<IfModule wsgi_module>
    WSGISocketPrefix {directory}/wsgi
</IfModule>
<Directory />
    Require all denied
</Directory>
IncludeOptional {directory}/conf.d/*.conf
"""

pytestmark = pytest.mark.slow
needs_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not here")


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the site's archives are."""
    directory = tmp_path_factory.mktemp("site")
    uwsgi = "pyuwsgi; sys_platform == 'linux' and platform_machine in 'x86_64 aarch64'"
    sites.packed(directory, PYTHON, directory / "archives", "gunicorn", uwsgi)
    return directory / "archives"


@pytest.fixture(scope="module")
def minion(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Masterless:
    """A minion with the formula and these archives."""
    made = sites.minion(tmp_path_factory.mktemp("minion"))
    (made.root / "shop").symlink_to(archives)
    return made


@pytest.fixture
def report(record_property: Callable[[str, object], None]) -> Callable[[str, Load], None]:
    """What prints and records a measurement."""

    def tell(what: str, load: Load) -> None:
        record_property(what, str(load))
        print(f"{what}: {load}")

    return tell


def example(port: int, root: Path | None = None, **app: Any) -> dict[str, Any]:
    """The example's pillar, with the app on another port, and in another place."""
    pillar = sites.example()
    shop = pillar["releases"]["apps"]["shop"]
    shop["programs"]["web"]["socket"] = f"127.0.0.1:{port}"
    shop["programs"]["web"]["env"].update(ODD=sites.ODD)
    shop["health"]["checks"] = [f"http://127.0.0.1:{port}/"]
    if root:
        shop.update(root=str(root), user=ME, group=MY_GROUP)
    shop.update(app)
    return pillar


# --- supervisor -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def supervisor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where supervisor's commands are."""
    directory = tmp_path_factory.mktemp("supervisor")
    environments.run(sys.executable, "-m", "venv", str(directory))
    environments.run(str(directory / "bin" / "pip"), "install", "--quiet", "supervisor")
    return directory / "bin"


@pytest.fixture
def supervised(minion: Masterless, supervisor: Path, tmp_path: Path) -> Iterator[Site]:
    """The app under supervisor, not deployed yet."""
    directory, port = tmp_path, free_port()
    (directory / "conf.d").mkdir()
    (directory / "supervisord.conf").write_text(SUPERVISORD.format(directory=directory))
    environments.run(str(supervisor / "supervisord"), "-c", str(directory / "supervisord.conf"))
    pillar = example(port, directory / "srv" / "shop")
    pillar["releases"]["apps"]["shop"]["programs"]["web"]["env"]["HOME"] = str(directory)
    pillar["releases"]["supervisor"] = {
        "command": f"{supervisor}/supervisorctl -c {directory}/supervisord.conf",
        "conf_dir": str(directory / "conf.d"),
        "log_dir": str(directory),
    }

    def apply(sls: str, pillar: Any) -> dict[str, Any]:
        return sites.applied(minion, sls, pillar)

    yield Site(apply, directory, f"http://127.0.0.1:{port}/", pillar)
    ended(int((directory / "supervisord.pid").read_text()))


def test_the_example_deploys_and_a_switch_loses_no_request(
    supervised: Site, report: Callable[[str, Load], None]
) -> None:
    assert {"shop is deployed", "shop is migrated", "shop runs"} <= set(supervised.deploy(FIRST))
    page = supervised.page()
    assert (page["release"], page["odd"]) == (FIRST, sites.ODD)
    assert supervised.deploy(FIRST) == {}
    load = supervised.under_load(SECOND)
    report("supervisor, gunicorn, a socket", load)
    assert load.failures == []
    assert load.answered[FIRST] + load.answered[SECOND] > 100
    assert "shop is rolled back" in supervised.deploy(SECOND, "releases.rollback")
    assert supervised.page()["release"] == FIRST
    supervised.deploy(FIRST, "releases.clean")
    with pytest.raises(OSError, match="refused"):
        supervised.page()


def test_without_a_socket_a_restart_has_a_gap_and_a_reload_has_none(
    supervised: Site, report: Callable[[str, Load], None]
) -> None:
    web = supervised.app["programs"]["web"]
    web["command"] += f" --bind {web.pop('socket')}"
    supervised.deploy(FIRST)
    load = supervised.under_load(SECOND)
    report("supervisor, gunicorn, no socket", load)
    assert (supervised.page()["release"], load.gap < 30) == (SECOND, True)
    before = supervised.pids()
    load = supervised.under_load(SECOND, "releases.reload")
    report("supervisor, gunicorn, no socket, reload: HUP", load)
    assert load.failures == []
    time.sleep(2)
    after = supervised.pids()
    assert not before & after, (before, after)
    assert supervised.page()["release"] == SECOND


def test_what_is_removed_from_the_pillar_is_stopped(supervised: Site) -> None:
    """By the real supervisor: a program, a socket, all plain programs, and the app."""
    programs = supervised.app["programs"]
    sleeps = {"command": "bin/python -c 'import time; time.sleep(600)'"}
    programs.update(worker=sleeps, other=sleeps)

    def status() -> list[str]:
        command = supervised.pillar["releases"]["supervisor"]["command"].split()
        lines = subprocess.run([*command, "status"], capture_output=True, text=True).stdout
        return sorted(line.split()[0] for line in lines.splitlines())

    supervised.deploy(FIRST)
    web = ["shop-web:web0", "shop-web:web1"]
    assert status() == [*web, "shop:other", "shop:worker"]
    logs = {path.name for path in supervised.directory.glob("shop*.log")}
    assert logs == {"shop-web-0.log", "shop-web-1.log", "shop-other.log", "shop-worker.log"}
    del programs["other"]
    assert supervised.deploy(FIRST)["shop runs"]["stopped"] == ["shop:other"]
    assert status() == [*web, "shop:worker"]
    del programs["worker"]
    assert supervised.deploy(FIRST)["shop runs"]["stopped"] == ["shop:worker"]
    assert status() == web
    address = programs["web"].pop("socket")
    programs["web"]["command"] += f" --bind {address}"
    assert supervised.deploy(FIRST)["shop runs"]["stopped"] == web
    assert status() == ["shop:web"]
    assert supervised.deploy(FIRST) == {}
    supervised.pillar["releases"]["apps"] = {}
    answers = supervised.apply("releases", supervised.pillar)
    (state,) = answers.values()
    assert (state["result"], state["changes"]["stopped"]) == (True, ["shop:web"])
    assert status() == []
    assert not list((supervised.directory / "conf.d").iterdir())


def test_disable_and_enable(supervised: Site) -> None:
    supervised.deploy(FIRST)
    supervised.deploy(FIRST, "releases.disable")
    with pytest.raises(OSError, match="refused"):
        supervised.page()
    assert "shop runs" in supervised.deploy(FIRST, "releases.enable")
    assert supervised.page()["release"] == FIRST


@pytest.mark.parametrize("release", [BROKEN])
def test_a_program_that_does_not_start_is_reported(supervised: Site, release: str) -> None:
    supervised.app.update(smoke_tests=None, health=None)
    supervised.deploy(FIRST)
    refused = supervised.answers(release)["shop runs"]
    assert refused["result"] is False
    assert minions.sentence(refused["comment"]), refused
    assert refused["comment"].startswith(f"On {release}, shop-web:web0 is ")
    supervised.deploy(SECOND)
    assert supervised.page()["release"] == SECOND


# --- nginx ----------------------------------------------------------------------------------------


@contextmanager
def nginx(site: Site, upstream: str, **more: Any) -> Iterator[None]:
    """Put nginx in front of an app: it is asked there from now on."""
    port, directory = free_port(), site.directory / "nginx"
    (directory / "conf.d").mkdir(parents=True)
    user = f"user {ME};" if ME == "root" else ""
    temporary = "".join(
        f"{kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"{user} pid {directory}/pid; error_log {directory}/log; events {{}}\n"
        f"http {{ access_log off; {temporary} include {directory}/conf.d/*.conf; }}\n"
    )
    with suppress(FileNotFoundError):
        shutil.copy("/etc/nginx/uwsgi_params", directory)
    command = f"nginx -c {directory}/nginx.conf"
    start = f"if [ -s {directory}/pid ]; then {command} -s reload; else {command}; fi"
    site.pillar["releases"]["nginx"] = {
        "conf_dir": str(directory / "conf.d"),
        "reload_command": f"{command} -t && {start}",
    }
    site.app["web"] = {"nginx": {"listen": f"127.0.0.1:{port}", "upstream": upstream, **more}}
    site.url = f"http://127.0.0.1:{port}/"
    site.app["health"]["checks"] = [site.url]
    try:
        yield
    finally:
        if (directory / "pid").exists():
            ended(int((directory / "pid").read_text()))


@needs_nginx
def test_nginx_in_front(supervised: Site, report: Callable[[str, Load], None]) -> None:
    with nginx(supervised, supervised.url.rstrip("/"), static={"/static/": "static/"}):
        supervised.deploy(FIRST)
        assert sites.fetch(f"{supervised.url}static/logo") == b"a logo"
        load = supervised.under_load(SECOND)
        report("nginx, supervisor, gunicorn, a socket", load)
        assert (load.failures, supervised.page()["release"]) == ([], SECOND)


@needs_nginx
@pytest.mark.parametrize("how", ["a socket", "no socket", "a unix socket of its own"])
def test_uwsgi_behind_nginx(
    supervised: Site, how: str, report: Callable[[str, Load], None]
) -> None:
    web = supervised.app["programs"]["web"]
    upstream = f"uwsgi://{web['socket']}"
    web["command"] = UWSGI  # which finds the socket by itself
    if how != "a socket":
        address = web.pop("socket")
        if how == "a unix socket of its own":
            address = f"{supervised.directory}/uwsgi.sock"
            upstream = f"uwsgi://unix:{address}"
        web["command"] = f"{UWSGI} --socket {address}"
    with nginx(supervised, upstream):
        supervised.deploy(FIRST)
        if not (Path(supervised.app["root"]) / FIRST / "bin" / "uwsgi").exists():
            pytest.skip("uwsgi has no wheel for this machine")
        load = supervised.under_load(SECOND, path="?wait=0.3")
        report(f"nginx, supervisor, uwsgi, {how}", load)
        assert supervised.page()["release"] == SECOND
        assert load.gap < 30
        if how == "a socket":
            assert load.failures == []


# --- Apache ---------------------------------------------------------------------------------------


@pytest.fixture
def apache(minion: Masterless) -> Iterator[Site]:
    """The app in an Apache that is not started yet, in a directory that its user can look into."""
    if shutil.which("apache2") is None or not (MODULES / "mod_wsgi.so").exists():
        pytest.skip("Apache with mod_wsgi, as Debian has them, is not here")
    if os.geteuid() != 0:
        pytest.skip("Apache is started by root only")
    directory, port = Path(tempfile.mkdtemp(prefix="apache-")), free_port()
    directory.chmod(0o755)
    server = directory / "apache"
    (server / "conf.d").mkdir(parents=True)
    load_modules(server, "mpm_event", "authz_core", "alias", "wsgi")
    web = {
        "listen": f"127.0.0.1:{port}",
        "wsgi_module": "shop.wsgi",
        "static": {"/static/": "static/"},
    }
    pillar = example(port, directory / "srv" / "shop", user="www-data", group="www-data")
    pillar["releases"]["apps"]["shop"].update(programs={}, web={"apache": web})
    command = f"apache2 -f {server}/apache.conf"
    pillar["releases"]["apache"] = {
        "conf_dir": str(server / "conf.d"),
        "reload_command": f"{command} -t && {command} -k graceful",
    }

    def apply(sls: str, pillar: Any) -> dict[str, Any]:
        return sites.applied(minion, sls, pillar)

    yield Site(apply, directory, f"http://127.0.0.1:{port}/", pillar)
    if (server / "pid").exists():
        ended(int((server / "pid").read_text()))
    shutil.rmtree(directory)


def load_modules(server: Path, *names: str) -> None:
    """Write the configuration of an Apache with these modules."""
    lines = [f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in names]
    (server / "apache.conf").write_text(
        APACHE.format(directory=server, modules="\n".join(lines)).lstrip()
    )


def test_apache(apache: Site, report: Callable[[str, Load], None]) -> None:
    assert "shop is loaded by apache" in apache.deploy(FIRST)
    page = apache.page()
    assert (page["release"], page["encoding"], page["user"] != 0) == (FIRST, "utf-8", True)
    assert not [path for path in page["path"] if path.endswith("dist-packages")]
    assert sites.fetch(f"{apache.url}static/logo") == b"a logo"
    with pytest.raises(urllib.error.HTTPError):
        sites.fetch(f"{apache.url}static/../shop/settings.py")
    assert apache.deploy(FIRST) == {}
    load = apache.under_load(SECOND)
    report("Apache, mod_wsgi", load)
    assert (load.failures, apache.page()["release"]) == ([], SECOND)
    assert set(load.answered) == {FIRST, SECOND}
    assert apache.deploy(SECOND, "releases.rollback")["shop runs"].keys() == {"touched"}
    assert apache.page()["release"] == FIRST
    apache.deploy(FIRST, "releases.clean")
    assert not list((apache.directory / "apache" / "conf.d").iterdir())


def test_apache_answers_what_it_was_asked_before_a_switch(apache: Site) -> None:
    apache.app["web"]["apache"]["processes"] = 1
    apache.deploy(FIRST)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(apache.page, "?wait=25")
        time.sleep(1)
        apache.deploy(SECOND)  # by whose check the process is to end
        assert asked.result()["release"] == FIRST
    assert apache.page()["release"] == SECOND


def test_apache_loads_again_what_it_refused(apache: Site) -> None:
    server = apache.directory / "apache"
    load_modules(server, "mpm_event", "authz_core", "alias")
    for _ in range(2):
        refused = apache.answers(FIRST, "releases.enable")["shop is loaded by apache"]
        assert refused["result"] is False
        assert minions.sentence(refused["comment"]), refused
        words = "shop needs mod_wsgi, which is not loaded: install and enable it."
        assert f"{words} {server}/conf.d/shop.conf was removed again." in refused["comment"]
        assert not list((server / "conf.d").iterdir())
    load_modules(server, "mpm_event", "authz_core", "alias", "wsgi")
    assert set(apache.deploy(FIRST, "releases.enable")) == {"shop is loaded by apache"}
    assert apache.deploy(FIRST, "releases.enable") == {}


def test_two_apps_on_one_address_of_apache(apache: Site) -> None:
    apache.app["web"]["apache"]["server_names"] = ["shop.localhost"]
    apache.app.update(migrations=None, health=None)
    other = {**apache.app, "release": SECOND, "root": str(apache.directory / "srv" / "blog")}
    other["web"] = {"apache": {**apache.app["web"]["apache"], "server_names": ["blog.localhost"]}}
    apache.pillar["releases"]["apps"]["blog"] = other
    apache.deploy(FIRST)
    for host, release in (("shop.localhost", FIRST), ("blog.localhost", SECOND)):
        assert json.loads(sites.fetch(apache.url, host))["release"] == release


# --- systemd --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine(
    archives: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[systemd.Machine, systemd.Salted]]:
    """A machine that runs systemd, and Salt there."""
    why_not = systemd.missing()
    if why_not:
        pytest.skip(why_not)
    if sys.executable == PYTHON:
        pytest.skip("a user without rights needs a Python of the system's")
    directory = tmp_path_factory.mktemp("machine")
    (directory / "salt").mkdir()
    root = minions.file_root(directory / "salt" / "root")
    shutil.copytree(archives, root / "shop")
    made = systemd.Machine(directory / "box", [directory / "salt", CHECKOUT])
    try:
        made.boot()
        yield made, systemd.Salted(made, directory / "salt", root, CHECKOUT / "formula")
    finally:
        made.shut_down()
        shutil.rmtree(directory / "box")


@pytest.fixture
def booted(machine: tuple[systemd.Machine, systemd.Salted], tmp_path: Path) -> Iterator[Site]:
    """The app under systemd, with a user that is not there yet, and not deployed yet."""
    port = free_port()
    pillar = example(port, process_manager="systemd")
    made = Site(machine[1].apply, tmp_path, f"http://127.0.0.1:{port}/", pillar)
    yield made
    made.pillar["releases"]["run"] = {"purge_data": True}
    made.deploy(FIRST, "releases.clean")
    assert not list(machine[0].units.glob("shop*"))


def test_systemd(booted: Site, report: Callable[[str, Load], None]) -> None:
    assert {"shop has a user", "shop is migrated", "shop runs"} <= set(booted.deploy(FIRST))
    page = booted.page()
    assert (page["release"], page["odd"], page["user"] != 0) == (FIRST, sites.ODD, True)
    assert booted.deploy(FIRST) == {}
    load = booted.under_load(SECOND)
    report("systemd, gunicorn, a socket", load)
    assert (load.failures, booted.page()["release"]) == ([], SECOND)
    before = booted.pids()
    changed = booted.deploy(SECOND, "releases.reload")
    assert changed["shop is reloaded"] == {"reloaded": ["shop-web.service"]}
    time.sleep(2)
    assert not before & booted.pids()
    assert "shop is rolled back" in booted.deploy(SECOND, "releases.rollback")
    assert booted.page()["release"] == FIRST


def test_systemd_without_a_socket(booted: Site, report: Callable[[str, Load], None]) -> None:
    web = booted.app["programs"]["web"]
    web["command"] += f" --bind {web.pop('socket')}"
    booted.deploy(FIRST)
    load = booted.under_load(SECOND)
    report("systemd, gunicorn, no socket", load)
    assert (booted.page()["release"], load.gap < 30) == (SECOND, True)


def test_systemd_and_what_does_not_start(booted: Site) -> None:
    booted.deploy(FIRST)
    booted.app.update(smoke_tests=None, health=None)
    refused = booted.answers(BROKEN)["shop runs"]
    assert refused["result"] is False
    assert minions.sentence(refused["comment"]), refused
    assert refused["comment"] == (
        f"On {BROKEN}, shop-web.service is failed (exit-code); "
        "see `journalctl -u shop-web.service`."
    )
    booted.deploy(SECOND)  # which it is allowed to start, though it has failed too often
    assert booted.page()["release"] == SECOND


def test_what_is_removed_from_the_pillar_is_stopped_by_systemd(
    booted: Site, machine: tuple[systemd.Machine, systemd.Salted]
) -> None:
    programs = booted.app["programs"]
    programs["worker"] = {"command": "bin/python -c 'import time; time.sleep(600)'"}
    booted.deploy(FIRST)
    del programs["worker"]
    retired = "programs that are no longer in the pillar are stopped"
    assert booted.deploy(FIRST)[retired]["stopped"] == ["shop-worker.service"]
    address = programs["web"].pop("socket")
    programs["web"]["command"] += f" --bind {address}"
    changed = booted.deploy(FIRST)
    assert changed[retired]["stopped"] == ["shop-web.socket"]
    assert booted.page()["release"] == FIRST
    assert booted.deploy(FIRST) == {}
    units = {path.name for path in machine[0].units.glob("shop*")}
    assert units == {"shop-web.service", "shop-web.env"}
    booted.deploy(FIRST, "releases.disable")
    with pytest.raises(OSError, match="refused"):
        booted.page()
    assert "shop runs" in booted.deploy(FIRST, "releases.enable")
    assert booted.page()["release"] == FIRST


def test_systemd_with_other_settings_and_after_a_boot(
    booted: Site, machine: tuple[systemd.Machine, systemd.Salted]
) -> None:
    booted.deploy(FIRST)
    web = booted.app["programs"]["web"]
    web["env"]["ODD"] = "another"
    assert set(booted.deploy(FIRST)) == {"/etc/systemd/system/shop-web.env", "shop runs"}
    assert booted.page()["odd"] == "another"

    own = machine[0].units / "shop-web.service.d" / "own.conf"
    own.parent.mkdir()
    own.write_text("[Service]\nEnvironment=ODDER=1\n")
    machine[0].run("systemctl", "daemon-reload")  # as `systemctl edit` does
    try:
        assert set(booted.deploy(FIRST)) == {"shop runs"}
        assert booted.deploy(FIRST) == {}
    finally:
        shutil.rmtree(own.parent)

    port = free_port()
    web["socket"], booted.url = f"127.0.0.1:{port}", f"http://127.0.0.1:{port}/"
    booted.app["health"]["checks"] = [booted.url]
    assert "shop runs" in booted.deploy(FIRST)
    assert booted.page()["release"] == FIRST

    machine[0].shut_down()
    with pytest.raises(OSError, match="refused"):
        booted.page()
    machine[0].boot()
    assert booted.page()["release"] == FIRST
    assert booted.deploy(FIRST) == {}

"""The execution module, as Salt's own loader gives it to a minion."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import environments, minions

pytest.importorskip("salt", reason="Salt does not run on this Python")

import salt.config
import salt.loader
from salt.exceptions import CommandExecutionError


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The functions of a minion that has synced."""
    directory = tmp_path_factory.mktemp("minion")
    return _synced(directory, minions.file_root(directory / "root"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file root of the test's own."""
    return minions.file_root(tmp_path / "root")


@pytest.fixture
def own_functions(tmp_path: Path, root: Path) -> Any:
    """The functions of a minion that has synced from `root`; the same loader for the whole test."""
    return _synced(tmp_path / "minion", root)


def _synced(directory: Path, root: Path) -> Any:
    opts = salt.config.minion_config(None)
    opts.update(minions.masterless(directory, root))
    opts["grains"] = salt.loader.grains(opts)
    synced = minions.sync(opts)
    assert "modules.virtualenv_tools" in synced["modules"]
    return salt.loader.minion_mods(opts)


@pytest.fixture
def carried(tmp_path: Path) -> environments.Environment:
    """A virtualenv that was built elsewhere."""
    version = "{}.{}".format(*sys.version_info)
    environments.require(version)
    return environments.make(f"venv-{version}", str(tmp_path / "srv" / "app" / "4f2a9c1"))


@pytest.mark.parametrize("test", [True, False], ids=["test", "real"])
def test_update_path(functions: Any, carried: environments.Environment, test: bool) -> None:
    before = environments.digest(carried.path)
    answer = functions["virtualenv_tools.update_path"](carried.path, test=test)
    assert answer["old_prefixes"] == [carried.old_prefix]
    assert answer["prefix"] == carried.path
    assert answer["changed"] is True
    assert answer["dry_run"] is test
    assert answer["rewritten"]["script"] >= 3
    assert answer["rewritten"]["activation"] >= 3
    assert answer["problems"] == []
    if test:
        assert environments.digest(carried.path) == before
    else:
        assert environments.references(carried.path, carried.old_prefix) == []


def test_a_test_run_reports_what_the_real_run_does(
    functions: Any, carried: environments.Environment
) -> None:
    said = functions["virtualenv_tools.update_path"](carried.path, test=True)
    done = functions["virtualenv_tools.update_path"](carried.path)
    assert {**said, "dry_run": False} == done


def test_a_second_run_changes_nothing(functions: Any, carried: environments.Environment) -> None:
    functions["virtualenv_tools.update_path"](carried.path)
    after = environments.digest(carried.path)
    answer = functions["virtualenv_tools.update_path"](carried.path)
    assert answer["changed"] is False
    assert answer["rewritten"] == {}
    assert environments.digest(carried.path) == after


def test_the_option_test_of_the_minion_is_honoured(
    functions: Any, carried: environments.Environment
) -> None:
    before = environments.digest(carried.path)
    functions.opts["test"] = True
    try:
        assert functions["virtualenv_tools.update_path"](carried.path)["dry_run"] is True
        assert functions["virtualenv_tools.reinitialize"](carried.path)["dry_run"] is True
    finally:
        functions.opts["test"] = False
    assert environments.digest(carried.path) == before


def test_reinitialize_reports_the_python(functions: Any, carried: environments.Environment) -> None:
    functions["virtualenv_tools.update_path"](carried.path)
    answer = functions["virtualenv_tools.reinitialize"](carried.path, python=sys.executable)
    assert answer["version"] == "{}.{}.{}".format(*sys.version_info)
    again = functions["virtualenv_tools.reinitialize"](carried.path, python=sys.executable)
    assert again["changed"] is False


def test_info_and_check(functions: Any, carried: environments.Environment) -> None:
    facts = functions["virtualenv_tools.info"](carried.path)
    assert facts["prefix"] == carried.old_prefix
    assert facts["builder"] == "venv"
    verdict = functions["virtualenv_tools.check"](carried.path)
    assert verdict["ok"] is False
    assert any(carried.old_prefix in problem["reason"] for problem in verdict["problems"])
    functions["virtualenv_tools.update_path"](carried.path)
    verdict = functions["virtualenv_tools.check"](carried.path, deep=True)
    assert verdict == {**verdict, "ok": True, "problems": []}


@pytest.mark.parametrize(
    ("function", "arguments", "sentence"),
    [
        ("update_path", ("/nowhere",), "/nowhere is not a virtualenv: not a directory"),
        ("update_path", ("srv/app",), "the path of a virtualenv must be absolute: srv/app"),
        ("update_path", (42,), "the path of a virtualenv must be absolute: 42"),
        ("update_path", ("{path}", "srv"), "the new path must be absolute: srv"),
        ("update_path", ("{path}", "/a\nb"), "must not hold a line break"),
        ("reinitialize", ("{path}", "/nowhere/python"), "/nowhere/python does not run"),
        ("reinitialize", ("{path}", "no-such-python"), "there is no no-such-python"),
        ("info", ("/nowhere",), "is not a virtualenv"),
        ("check", ("/nowhere",), "is not a virtualenv"),
    ],
)
@pytest.mark.few(4)
def test_bad_input_is_one_sentence(
    functions: Any,
    carried: environments.Environment,
    function: str,
    arguments: tuple[Any, ...],
    sentence: str,
) -> None:
    before = environments.digest(carried.path)
    given = [a.format(path=carried.path) if isinstance(a, str) else a for a in arguments]
    with pytest.raises(CommandExecutionError, match=sentence) as caught:
        functions[f"virtualenv_tools.{function}"](*given)
    assert "\n" not in str(caught.value)
    assert environments.digest(carried.path) == before


@pytest.mark.slow
def test_every_function_has_an_example(functions: Any) -> None:
    documented = functions["sys.doc"]("virtualenv_tools")
    relocation = ("check", "info", "reinitialize", "update_path")
    assert {f"virtualenv_tools.{name}" for name in relocation} <= set(documented)
    older = {"mark": "mark_bad", "unmark": "unmark_bad", "prove": "mark_healthy"}
    for name, text in documented.items():
        module, _, function = name.partition(".")
        named = f"{module}.{older.get(function, function)}"
        assert "CLI Example:" in text, name
        assert re.search(rf"salt ('\*'|'web\*'|build|web1) {re.escape(named)}", text), name


def test_a_sync_takes_effect_without_a_restart(own_functions: Any, root: Path) -> None:
    with pytest.raises(CommandExecutionError, match=minions.NOT_A_VIRTUALENV):
        own_functions["virtualenv_tools.info"]("/nowhere")
    minions.say_otherwise(root / "_utils" / "relocate_core", "is none at all")
    own_functions["saltutil.sync_all"]()
    with pytest.raises(CommandExecutionError, match="is none at all"):
        own_functions["virtualenv_tools.info"]("/nowhere")


@pytest.mark.slow
def test_a_core_that_does_not_load_is_not_half_loaded(own_functions: Any, root: Path) -> None:
    broken = root / "_utils" / "relocate_core" / "errors.py"
    good = broken.read_text()
    broken.write_text("raise RuntimeError('broken on purpose')\n")
    own_functions["saltutil.sync_all"]()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        own_functions["virtualenv_tools.info"]("/nowhere")
    broken.write_text(good)
    own_functions["saltutil.sync_all"]()
    with pytest.raises(CommandExecutionError, match=minions.NOT_A_VIRTUALENV):
        own_functions["virtualenv_tools.info"]("/nowhere")


@pytest.mark.slow
def test_equal_cores_of_two_minions(tmp_path: Path) -> None:
    first, second = (minions.Masterless(tmp_path / name) for name in ("first", "second"))
    with pytest.raises(CommandExecutionError, match=minions.NOT_A_VIRTUALENV):
        first.functions["virtualenv_tools.info"]("/nowhere")
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(CommandExecutionError, match="cannot unpack /nowhere"):
        second.functions["virtualenv_tools.unpack"]("/nowhere.tar", str(tmp_path / "srv" / "1"))


def test_a_sync_while_a_job_runs(own_functions: Any) -> None:
    ours = sys.modules[own_functions["virtualenv_tools.info"].__module__]

    def job() -> None:
        with ours._core() as core:
            for source in Path(core.__path__[0], "releases").glob("*.py"):
                source.unlink()
            assert core.publish

    with pytest.raises(CommandExecutionError, match="a sync replaced"):
        job()


def _said(*arguments: str, cwd: Path) -> str:
    """What a command says of a directory that is no virtualenv."""
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("route", ["sync", "-m", "pip", "pip and sync"])
def test_each_route_runs_its_newest_core(tmp_path: Path, route: str) -> None:
    """However the module comes to a minion, it runs the core that came with it."""
    python = Path(sys.prefix) / "bin" / "python"
    root = minions.file_root(tmp_path / "root")
    minions.say_otherwise(root / "_utils" / "relocate_core", "is none, says the synced core")
    configured = minions.masterless(tmp_path / "minion", root if "sync" in route else tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "minion").write_text(json.dumps(configured))
    if "pip" in route:
        python = _installed(tmp_path)
    command = [str(python.parent / "salt-call"), "--local", "-c", str(tmp_path / "etc")]
    expected = "is none, says the synced core" if "sync" in route else minions.NOT_A_VIRTUALENV
    if "sync" in route:
        subprocess.run([*command, "saltutil.sync_all"], check=True, capture_output=True)
    if route == "-m":
        command += ["-m", str(minions.CHECKOUT)]
    assert expected in _said(*command, "virtualenv_tools.info", "/nowhere", cwd=tmp_path)


def _installed(directory: Path) -> Path:
    """A Python that has Salt from this one and the extension installed by pip, not editable."""
    venv = directory / "installed"
    subprocess.run(
        [sys.executable, "-m", "venv", str(venv)], check=True, env=environments.environ()
    )
    python = venv / "bin" / "python"
    checkout = directory / "checkout"
    for name in ("_modules", "formula", "relocate_core", "saltext_virtualenv_tools"):
        shutil.copytree(minions.CHECKOUT / name, checkout / name)
    for name in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(minions.CHECKOUT / name, checkout / name)
    stale = checkout / "build" / "lib" / "relocate_core" / "stale.py"  # of an older build
    stale.parent.mkdir(parents=True)
    stale.touch()
    environments.run(str(python), "-m", "pip", "install", "-q", "--no-deps", str(checkout))
    ours = next((Path(sys.prefix) / "lib").glob("python*/site-packages"))
    theirs = next((venv / "lib").glob("python*/site-packages"))
    assert (theirs / "relocate_core" / "releases" / "root.py").exists()
    assert not (theirs / "relocate_core" / stale.name).exists()
    formula = environments.run(
        str(python), "-c", "import saltext_virtualenv_tools as ext; print(ext.formula())"
    )
    assert (Path(formula.strip()) / "releases" / "init.sls").is_file()
    assert (Path(formula.strip()) / "releases" / "files" / "nginx.conf.jinja").is_file()
    # Salt and what it needs come from here; this checkout's own editable installation must not.
    lines = f"import sys; sys.path.append({str(ours)!r})\n"
    (theirs / "salt-from-the-tests.pth").write_text(lines)
    script = venv / "bin" / "salt-call"
    script.write_text(
        f"#!{python}\nimport sys\n"
        "sys.path = [path for path in sys.path if '__editable__' not in path]\n"
        "from salt.scripts import salt_call\nsys.exit(salt_call())\n"
    )
    script.chmod(0o755)
    return python

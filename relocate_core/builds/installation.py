"""Bringing the kept environment in step with what was asked for: no more than that is changed."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field

from ..errors import BuildFailed
from ..progress import Notify
from . import sources
from .environment import Environment
from .installers import Installer, Wanted
from .order import Order
from .runner import Runner


@dataclass(frozen=True)
class Installed:
    """What an installation has changed.

    Attributes:
        path: the environment.
        added: the versions of the packages that were installed, by name.
        removed: the names of those that were removed.
        kept: how many were there already.
        asked: the requirements that it was for; some of them may be met by the system.
    """

    path: str
    added: dict[str, str]
    removed: list[str]
    kept: int
    asked: tuple[str, ...] = field(default=(), repr=False)


def install(order: Order, installer: Installer, runner: Runner, notify: Notify) -> Installed:
    """Install what was asked for into the environment that is kept, and remove all else.

    Raises:
        BuildFailed: a tool failed; the next build starts from a complete environment all the same.
    """
    installer.prepare()
    options = order.options
    kept = Environment(
        order.directory,
        order.interpreter,
        order.tool,
        runner,
        options.cache,
        options.system_site_packages,
    )
    kept.prepare()
    notify("prepared", {"environment": kept.path, "new": kept.is_new})
    wanted = _wanted(order, installer, kept)
    plan = installer.plan(wanted, kept)
    notify("planned", {"packages": len(plan)})
    before = {} if kept.is_new else kept.contents
    same = {name for name, content in plan.items() if before.get(name) == content}
    obsolete, fresh = sorted(set(before) - same), sorted(set(plan) - same)
    if kept.is_new or obsolete or fresh:
        _change(kept, plan, fresh, obsolete, installer, runner)
    if kept.is_new:
        same = set()
    added = {name: _version(plan[name]) for name in sorted(set(plan) - same)}
    removed = sorted(set(before) - set(plan))
    notify("installed", {"installed": len(added), "removed": len(removed)})
    asked = [f"{one.name}{one.extras}" for one in wanted.wheels]
    asked += [*order.inputs.requirements.lines, *order.inputs.pip_packages]
    return Installed(kept.path, added, removed, len(same), tuple(asked))


def _wanted(order: Order, installer: Installer, kept: Environment) -> Wanted:
    """What is to be installed, with the project as one more wheel."""
    inputs, directory = order.inputs, order.inputs.directory
    own = os.path.join(order.directory, "wheels")
    shutil.rmtree(own, ignore_errors=True)
    os.mkdir(own, 0o755)
    wheels = []
    for number, one in enumerate(inputs.wheels):
        copy = shutil.copy(one.path, _created(own, str(number)))
        wheels.append(sources.wheel(copy, one.extras))
    if inputs.tree is not None:
        directory = inputs.tree.copy(os.path.join(order.directory, "source"))
        built = installer.wheel_of(directory, kept, _created(own, "project"))
        wheels.append(sources.wheel(built, inputs.tree.extras))
    return Wanted(
        directory,
        inputs.requirements.files,
        inputs.constraints.files,
        inputs.pip_packages,
        tuple(wheels),
        order.options.require_hashes,
        inputs.requirements.hashes,
    )


def _created(parent: str, name: str) -> str:
    directory = os.path.join(parent, name)
    os.mkdir(directory, 0o755)
    return directory


def _change(
    kept: Environment,
    plan: dict[str, str],
    fresh: list[str],
    obsolete: list[str],
    installer: Installer,
    runner: Runner,
) -> None:
    """Install what is new; all of it into a new environment where the order would matter."""
    if not kept.is_new:
        if not kept.has_shared_files():
            with kept.changing(plan):
                installer.install(fresh, obsolete, kept)
            if kept.is_complete(plan) and not kept.has_shared_files():
                return
        kept.create()
    with kept.changing(plan):
        installer.install(sorted(plan), (), kept)
    if not kept.is_complete(plan):
        raise BuildFailed(
            f"cannot {runner.doing}: the content of {kept.path} is not what was to be "
            f"installed; see {runner.log}, and report it as a bug"
        )


def _version(content: str) -> str:
    """The version in the description of a distribution's content; that of a URL has none."""
    words = content.split()
    return words[0] if words[0] not in ("==", "@") else words[1] if words[0] == "==" else ""

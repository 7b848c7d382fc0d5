"""
Releases of Python code: deployed, switched to, checked, and pruned in a highstate.

A release is a virtualenv that was built elsewhere, at ``<root>/<name>``; the name is mostly the
commit's hash. A symlink beside the releases points to the active one. Every state reports with
``test=True`` what it would do, does nothing the second time, and leaves nothing half done.

.. code-block:: yaml

    /srv/app/4f2a9c1:
      virtualenv_relocated.managed:
        - source: salt://app/4f2a9c1.tar.gz
        - smoke: django-admin check

    /srv/app/current:
      virtualenv_relocated.active:
        - target: /srv/app/4f2a9c1
        - require:
          - virtualenv_relocated: /srv/app/4f2a9c1

    app:
      service.running:
        - watch:
          - virtualenv_relocated: /srv/app/current

    app answers:
      virtualenv_relocated.healthy:
        - link: /srv/app/current
        - checks: http://127.0.0.1:8000/health
        - watch:
          - service: app

    /srv/app:
      virtualenv_relocated.pruned:
        - keep: 5
        - require:
          - virtualenv_relocated: app answers
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatch
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from salt.exceptions import CommandExecutionError, SaltException, SaltInvocationError
from salt.state import STATE_INTERNAL_KEYWORDS
from salt.utils.args import get_function_argspec

if TYPE_CHECKING:
    from salt_dunders import __env__, __low__, __lowstate__, __opts__, __salt__, __states__

log = logging.getLogger(__name__)

__virtualname__ = "virtualenv_relocated"

_SHOWN_PROBLEMS = 10
# For how many releases a delta bundle is looked for: each may cost a request to the master.
_MOST_DELTAS = 3
# A bundle's name: its own, perhaps that of the bundle it is a delta from, and its ending.
_BUNDLE = re.compile(r"(.+?)(?:\.from-.+)?(\.tar(?:\.gz|\.zst)?|\.tgz|\.tzst)\Z")
# Parameters of `unpack` and `migrate` that the states set themselves.
_NO_OPTIONS = ("archive", "path", "source", "source_hash", "saltenv", "kind", "env", "test")
# What to do where a file cannot be fetched.
_SEE = "see that it exists, and that this minion may read it"
# What Salt's HTTP client gives for a status where there was none.
_NO_ANSWER = 599


def __virtual__() -> str | tuple[bool, str]:  # noqa: N807
    if "virtualenv_tools.unpack" in __salt__:
        return __virtualname__
    return False, "virtualenv_relocated: the execution module virtualenv_tools is not loaded"


def managed(
    name: str,
    source: str | list[Any] | dict[str, Any] | None = None,
    source_hash: str | None = None,
    source_hash_name: str | None = None,
    skip_verify: bool = False,
    signature: str | list[str] | None = None,
    source_hash_sig: str | bool | None = None,
    signed_by_any: str | list[str] | None = None,
    signed_by_all: str | list[str] | None = None,
    keyring: str | None = None,
    gnupghome: str | None = None,
    sig_backend: str = "gpg",
    keep_source: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """
    Deploy a release: fetched, unpacked, relocated, put onto this machine's Python, and checked.

    It is prepared in a staging directory and renamed into place, so a release that exists is
    complete. Nothing is fetched or done where it is deployed already; a release is never changed.
    Only where its Python is gone, as after an upgrade of the host, it is put onto another one that
    fits.

    name
        The release's path: ``<root>/<name>``.

    source
        The archive of the virtualenv: a tar, plain or packed with gzip, bzip2, xz or zstd. A
        ``salt://``, ``http(s)://``, ``ftp://`` or ``s3://`` URL or a path on the minion; or a list
        of them, of which the first that exists is taken.

        Of a delta bundle (see :py:func:`virtualenv_tools.pack`), only what changed is fetched.
        Where a release is deployed here from ``9c01b7e.tar.gz``, ``4f2a9c1.from-9c01b7e.tar.gz`` is
        looked for beside a source ``4f2a9c1.tar.gz`` of Salt's own file server or of this machine;
        or list the delta bundles as ``from`` beside ``full``, by release. The full one is taken
        where none of them fits, or the other release is not as it was deployed.

    source_hash, source_hash_name
        What the archive has to hash to, in all forms of
        :py:func:`archive.extracted <salt.states.archive.extracted>`: ``sha256=...``, a bare hash,
        or a URL of a file of hashes. Needed for what does not come from Salt's own file server or
        this machine. Where it is a hash, delta bundles are only taken if they are listed, with a
        ``source_hash`` of their own; a file of hashes may contain theirs too, or there is one
        beside each, called ``<archive>.sha256``.

    skip_verify
        ``True`` takes an archive without a hash.

    signature, source_hash_sig, signed_by_any, signed_by_all, keyring, gnupghome, sig_backend
        Whose signature the archive or its hash must have, as in
        :py:func:`archive.extracted <salt.states.archive.extracted>` of Salt 3007 and later. For the
        interpreter bundle that an archive was built on, a ``signature`` is as good as a
        ``source_hash``.

    keep_source
        ``True`` leaves the archive in the minion's cache; it is not needed again.

    options
        ``python``, ``user``, ``group``, ``mode``, ``smoke``, ``smoke_user``, ``limits``,
        ``shared``, ``hard_links`` and ``wait``, as for :py:func:`virtualenv_tools.unpack`.

    .. code-block:: yaml

        /srv/app/4f2a9c1:
          virtualenv_relocated.managed:
            - source:
              - salt://app/4f2a9c1.tar.gz
              - https://builds.example.org/app/4f2a9c1.tar.gz
            - source_hash: https://builds.example.org/app/4f2a9c1.tar.gz.sha256
            - python: '3.11'
            - smoke_user: app
            - smoke:
              - gunicorn --check-config app.wsgi
              - python -c 'import app'

        /srv/app/77d10ce:
          virtualenv_relocated.managed:
            - source: salt://app/77d10ce.tar.gz
            - python:
                source: salt://pythons/cpython-3.13.0.tar.zst
                source_hash: 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef

        /srv/app/9c01b7e:
          virtualenv_relocated.managed:
            - source:
                full: https://builds.example.org/app/9c01b7e.tar.zst
                from:
                  4f2a9c1: https://builds.example.org/app/9c01b7e.from-4f2a9c1.tar.zst
            - source_hash: https://builds.example.org/app/SHA256SUMS
    """
    ret = _new(name)
    signers = {
        "signed_by_any": signed_by_any,
        "signed_by_all": signed_by_all,
        "keyring": keyring,
        "gnupghome": gnupghome,
    }
    trust = _Trust(source_hash_name, skip_verify, signature, source_hash_sig, signers, sig_backend)
    with _Reporting(ret):
        given = _passed_on(options, "unpack")
        source, deltas = _full(source, source_hash, skip_verify)
        sources = _sources(source, source_hash, skip_verify)
        unpack = partial(__salt__["virtualenv_tools.unpack"], sources[0], name, **given)
        found = unpack(source_hash=source_hash, test=True)
        if not found["changed"]:
            if not __opts__["test"]:  # a killed run may have left something to record
                unpack(source_hash=source_hash, test=False)
            return _with(ret, True, f"{name} is deployed.")
        if found["repaired"]:
            return _repaired(ret, name, found, given)
        if __opts__["test"]:
            _require_one(sources)
            ret["changes"] = {"release": {"old": None, "new": name}}
            _compare(ret, name, _at_hand(sources[0]))
            named = found.get("interpreter")
            places = " or ".join(sources) + _onto(given.get("python"), found["python"], named)
            return _with(ret, None, f"{name} would be deployed from {places}.")
        unused = []
        for chosen, chosen_hash in _deltas(name, source, source_hash, deltas, trust):
            try:
                done = _deploy(name, chosen, chosen_hash, trust, given, keep_source)
                return _deployed(ret, name, chosen, done)
            except SaltException as error:  # whatever it is: there is the full one
                log.warning("%s is not deployed from %s: %s", name, chosen, error)
                unused.append(
                    f"{chosen} could not be used, falling back to the full bundle: "
                    f"{_sentence(error)}"
                )
        chosen, chosen_hash = _chosen(source, source_hash)
        done = _deploy(name, chosen, chosen_hash, trust, given, keep_source)
        ret = _deployed(ret, name, chosen, done)
        if unused:
            ret.setdefault("warnings", []).extend(unused)
    return ret


def migrated(
    name: str,
    kind: str = "django",
    env: dict[str, str] | list[dict[str, str]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """
    Migrate the database's schema to what a release needs, before the release is activated.

    The schema's version is recorded before and after. When the release is rolled back, be it by
    :py:func:`healthy` or by :py:func:`virtualenv_tools.rollback`, the schema is migrated down to
    what the previous release ran with, by the newer code, before that one is activated; where a
    migration is irreversible, the newer release stays active. Where an older release is set in the
    pillar again, this state migrates the schema down for it.

    As the previous release goes on running until the switch, migrations have to leave it working.

    Where many minions use one database, ``host`` is the one that migrates it, and only up: no
    rollback of a single minion takes the schema from under the others. On all other minions nothing
    is changed in the database: this state waits until the schema has what the release needs, or
    fails. ``salt-run releases.rollback`` migrates it down when the last minion is back. Where the
    database is on another machine, and there is no ``host``, this state fails.

    name
        The release's path.

    kind
        ``django``, ``alembic`` or ``commands``.

    env
        More variables for the migration tool: a dictionary, or a list of dictionaries. They are
        kept for a rollback, in a file that only the user salt-minion runs as can read, and are
        neither printed nor logged.

    options
        ``host``, ``manage``, ``settings``, ``database``, ``config``, ``version``, ``up``, ``down``,
        ``check``, ``user``, ``cwd``, ``timeout`` and ``wait``, as for
        :py:func:`virtualenv_tools.migrate`.

    .. code-block:: yaml

        shop's schema:
          virtualenv_relocated.migrated:
            - name: /srv/app/4f2a9c1
            - host: web1
            - settings: shop.settings
            - user: app
            - env:
                DATABASE_URL: postgres://app:{{ pillar["database"]["password"] }}@db/app
            - require:
              - virtualenv_relocated: /srv/app/4f2a9c1
            - require_in:
              - virtualenv_relocated: /srv/app/current

        a schema of our own:
          virtualenv_relocated.migrated:
            - name: /srv/app/4f2a9c1
            - kind: commands
            - version: shop-schema version
            - up: shop-schema up
            - down: shop-schema down --to {version}
    """
    ret = _new(name)
    with _Reporting(ret):
        name = _path(name, "the release")
        given = _passed_on(options, "migrate")
        if __opts__["test"] and not os.path.lexists(name):
            host = given.get("host")
            if host not in (None, __opts__["id"]):
                return _with(
                    ret, None, f"{name}, once it exists, would wait for the schema from {host}."
                )
            ret["changes"] = {"schema": {"old": None, "new": os.path.basename(name)}}
            return _with(ret, None, f"The schema would be migrated for {name}, once it exists.")
        done = __salt__["virtualenv_tools.migrate"](
            name, kind=kind, env=_variables(env), test=__opts__["test"], **given
        )
        return _migrated(ret, name, done)
    return ret


def active(name: str, target: str | None = None) -> dict[str, Any]:
    """
    Point a symlink to a release: atomically, so that there is no moment without it.

    A release that is incomplete, cannot run, or is marked bad is refused; so is a directory in the
    link's place. The previous release is kept in the history, for a rollback.

    name
        The link, beside the releases: ``<root>/current``.

    target
        The release: its path, or its name alone.

    .. code-block:: yaml

        /srv/app/current:
          virtualenv_relocated.active:
            - target: /srv/app/4f2a9c1
            - require:
              - virtualenv_relocated: /srv/app/4f2a9c1
    """
    ret = _new(name)
    with _Reporting(ret):
        name = _path(name, "the link")
        path = _target(name, target)
        free = os.path.islink(name) or not os.path.lexists(name)
        if __opts__["test"] and free and not os.path.lexists(path):
            ret["changes"] = {"release": {"old": _active(name), "new": os.path.basename(path)}}
            return _with(ret, None, f"{name} would point to {path}, once that is deployed.")
        switch = __salt__["virtualenv_tools.activate"](path, link=name, test=__opts__["test"])
        if not switch["changed"]:
            return _with(ret, True, f"{name} points to {path}.")
        ret["changes"] = {"release": {"old": switch["previous"], "new": switch["release"]}}
        if __opts__["test"]:
            return _with(ret, None, f"{name} would point to {path}.")
        return _with(ret, True, f"{name} now points to {path}.")
    return ret


def rolled_back(
    name: str,
    to: str | None = None,
    leaving: str | None = None,
    mark: bool = True,
    reason: str = "",
    migrate: bool = True,
) -> dict[str, Any]:
    """
    Roll a symlink back to the previous release: for a run that is asked for, and no highstate.

    Nothing is downloaded. The schema is migrated down first to what that release ran with, and the
    one that is rolled back is marked bad. Without ``to`` and ``leaving`` each run goes one release
    further back.

    name
        The link, beside the releases: ``<root>/current``.

    to
        The name of the release to activate. By default the last good one that was active before.

    leaving
        The name of the release to leave; nothing is done where another one is active.

    mark
        ``False`` does not mark the one that is rolled back.

    reason
        Why, for the mark and the history.

    migrate
        ``False`` leaves the schema as it is.

    .. code-block:: yaml

        app is rolled back:
          virtualenv_relocated.rolled_back:
            - name: /srv/app/current
            - leaving: 4f2a9c1
            - reason: prices are wrong
    """
    ret = _new(name)
    with _Reporting(ret):
        name = _path(name, "the link")
        root, _, link = name.rpartition("/")
        switch = __salt__["virtualenv_tools.rollback"](
            root,
            to=to,
            link=link,
            leaving=leaving,
            mark=mark,
            reason=reason,
            migrate=migrate,
            test=__opts__["test"],
        )
        old, new = switch["previous"], switch["release"]
        if not switch["changed"]:
            return _with(ret, True, f"{name} points to {new}.")
        ret["changes"] = {"release": {"old": old, "new": new}}
        if switch.get("schema"):
            ret["changes"]["schema"] = switch["schema"]
        if __opts__["test"]:
            return _with(ret, None, f"{name} would point to {new} again.{_schema_left(switch)}")
        marked = f" {old} is marked bad." if switch["bad"] else ""
        return _with(ret, True, f"{name} points to {new} again.{marked}{_schema_left(switch)}")
    return ret


def healthy(
    name: str,
    link: str | None = None,
    checks: str | dict[str, Any] | list[Any] | None = None,
    attempts: int = 10,
    interval: float = 1,
    timeout: float = 10,
    user: str | None = None,
    rollback: bool = True,
) -> dict[str, Any]:
    """
    Check the active release, or roll back to the previous one.

    Where a check fails that many times, and the release has not been found healthy since it was
    activated, the schema is migrated down to what the last good release ran with (see
    :py:func:`migrated`), the link points to that one again, the failed one is marked bad, what
    this state watches is restarted, and the state fails. A highstate does not bring the bad release
    back before :py:func:`virtualenv_tools.unmark_bad`. A release that was healthy once is not
    rolled back when its checks fail later: the cause is elsewhere then. One that was put onto
    another Python since (see :py:func:`reinitialized`) is put back onto its previous Python.

    name
        The link to the active release, or any name where ``link`` is given.

    link
        The link to the active release. Better than by ``name``: where a service watches the link,
        Salt takes every state of that name for what is watched, so this one, which watches the
        service, would make a circular requisite.

    checks
        One or several: a URL, which has to answer with 200; a command, which has to succeed, run as
        by :py:func:`virtualenv_tools.run`; or a dictionary
        of ``url`` with ``status`` and ``match`` (a regular expression that the page has to
        contain), or of ``cmd`` with ``user``.

    attempts
        How often each check is tried.

    interval
        Seconds between two attempts.

    timeout
        Seconds that one attempt may take.

    user
        Who runs the commands.

    rollback
        ``False`` only fails.

    .. code-block:: yaml

        app answers:
          virtualenv_relocated.healthy:
            - link: /srv/app/current
            - checks:
              - http://127.0.0.1:8000/health
              - url: http://127.0.0.1:8000/
                match: Welcome
              - django-admin check --deploy
            - watch:             # what to restart after a rollback
              - service: app
    """
    # One call is enough: what a watch adds, the restart after a rollback, is done in any case.
    ret = {**_new(name), "skip_watch": True}
    with _Reporting(ret):
        wanted = list(_checks(checks, user, timeout))
        count, pause = _number(attempts, "attempts", 1), _number(interval, "interval", 0)
        link = _path(link or name, "the link")
        now = __salt__["virtualenv_tools.active"](link)
        release = now["release"]
        if __opts__["test"]:
            if now["proven"]:
                return _with(ret, True, f"{release} was found healthy since it was activated.")
            return _with(ret, None, f"What {link} points to would be checked.")
        if release is None:
            return _with(ret, False, f"{link} points to no release: activate one.")
        failure = _failure(wanted, now["path"], count, pause)
        if failure is None:
            __salt__["virtualenv_tools.mark_healthy"](now["path"], link=link)
            return _with(ret, True, f"{release} is healthy.")
        if rollback and now["old_python"] and not now["proven"]:
            return _put_back(ret, link, now["path"], failure, wanted, count, pause)
        if now["proven"] or not rollback:
            why = "it was healthy before" if now["proven"] else "rollback is off"
            return _with(ret, False, f"{release} is not healthy: {failure}. It stays, as {why}.")
        return _rolled_back(ret, link, release, failure, wanted, count, pause)
    return ret


def pruned(name: str, keep: int = 5) -> dict[str, Any]:
    """
    Remove old releases.

    The active one, the previous one, pinned ones, those that a process uses, and the one whose code
    alone can migrate a schema down always stay. A release that is marked bad does not count as one
    of those to keep. What is no release is not touched. Interpreters in ``pythons``, beside the
    root, that no release, virtualenv or process uses any more are removed too.

    name
        The root: the directory of the releases.

    keep
        How many good releases stay.

    .. code-block:: yaml

        /srv/app:
          virtualenv_relocated.pruned:
            - keep: 3
    """
    ret = _new(name)
    with _Reporting(ret):
        done = __salt__["virtualenv_tools.prune"](
            _path(name, "the root"), keep=keep, test=__opts__["test"]
        )
        pythons = done.get("pythons", [])
        if done["removed"]:
            ret["changes"]["removed"] = done["removed"]
        if pythons:
            ret["changes"]["pythons"] = pythons
        if done.get("failed"):
            reasons = "; ".join(f"{one}: {why}" for one, why in done["failed"].items())
            return _with(ret, False, f"Some releases could not be removed ({reasons}).")
        count = _counted(done["removed"], "release")
        if pythons:
            count += f" and {_counted(pythons, 'interpreter')}"
        if not (done["removed"] or pythons):
            return _with(ret, True, "There is nothing to prune.")
        if __opts__["test"]:
            return _with(ret, None, f"{count} would be removed.")
        return _with(ret, True, f"{count} removed.")
    return ret


def reinitialized(
    name: str, python: str | dict[str, Any] | list[Any] | None = None
) -> dict[str, Any]:
    """
    Have a release on a Python, such as a security release of the one that it was deployed on.

    Programs that run go on with the Python that they were started with: let them watch this state.
    A Python that does not fit, or does not run, is refused, and the release stays as it is. A later
    :py:func:`healthy` that fails puts it back; from then on that Python is refused too.

    name
        The release's path; of a link, such as ``<root>/current``, it is the release there.

    python
        As ``python`` of :py:func:`virtualenv_tools.reinitialize`: an executable, a command, a
        version, or the bundle of an interpreter as ``source`` and ``source_hash``.

    .. code-block:: yaml

        /srv/shop/current:
          virtualenv_relocated.reinitialized:
            - python:
                source: salt://pythons/cpython-3.13.1-x86_64.tar.zst
                source_hash: 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef
            - watch_in:
              - service: shop
    """
    ret = _new(name)
    with _Reporting(ret):
        path = os.path.realpath(_path(name, "the release"))
        if __opts__["test"] and not os.path.lexists(path):
            return _with(ret, None, f"{name} would be put onto a Python, once it is deployed.")
        done = __salt__["virtualenv_tools.reinitialize"](
            path, python=python, saltenv=__env__, test=__opts__["test"]
        )
        if not done["changed"]:
            return _with(ret, True, f"{path} runs on {done['python']}.")
        ret["changes"] = {"python": {"old": done["old_python"], "new": done["python"]}}
        if __opts__["test"]:
            return _with(ret, None, f"{path} would be put onto {done['python']}.")
        _warn(ret, done["problems"])
        return _with(ret, True, f"{path} was put onto {done['python']}.")
    return ret


def others_reinitialized(
    name: str,
    link: str | None = None,
    python: str | dict[str, Any] | list[Any] | None = None,
    checked: bool = True,
) -> dict[str, Any]:
    """
    Have the other releases on the Python that the active one was put onto.

    So a rollback does not bring back the Python that was left, such as one without a security fix.
    Nothing is done before the active release was found :py:func:`healthy` on that Python: a Python
    that is wrong for that release reaches no other. One that does not fit is not used for a
    release, nor one that the release was put back from; the comment has those that stay as they
    are. The state fails where a release is damaged, and the others follow.

    name
        The link to the active release, or any name where ``link`` is given.

    link
        The link to the active release; better than by ``name``, as for :py:func:`healthy`.

    python
        As ``python`` of :py:func:`reinitialized`. A bundle is not fetched: the active release runs
        on it already.

    checked
        ``False`` does not wait for the active release to be found healthy on that Python: for an
        app that has no state :py:func:`healthy`.

    .. code-block:: yaml

        shop's other releases are on its Python:
          virtualenv_relocated.others_reinitialized:
            - link: /srv/shop/current
            - python:
                source: salt://pythons/cpython-3.13.1-x86_64.tar.zst
                source_hash: 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef
            - require:
              - virtualenv_relocated: shop answers
    """
    ret = _new(name)
    with _Reporting(ret):
        link = _path(link or name, "the link")
        root = os.path.dirname(link)
        if __opts__["test"] and not os.path.lexists(link):
            return _with(ret, True, f"{link} does not exist yet, so no release would follow.")
        done = __salt__["virtualenv_tools.reinitialize_others"](
            root, python, link=link, checked=checked, saltenv=__env__, test=__opts__["test"]
        )
        return _followed(ret, done)
    return ret


def absent(name: str) -> dict[str, Any]:
    """
    Remove a release, unless it is active, pinned, or used by a process.

    name
        The release's path.

    .. code-block:: yaml

        /srv/app/9c01b7e:
          virtualenv_relocated.absent
    """
    ret = _new(name)
    with _Reporting(ret):
        there = __salt__["virtualenv_tools.remove"](
            _path(name, "the release"), test=__opts__["test"]
        )
        if not there:
            return _with(ret, True, f"{name} does not exist.")
        ret["changes"] = {"release": {"old": name, "new": None}}
        if __opts__["test"]:
            return _with(ret, None, f"{name} would be removed.")
        return _with(ret, True, f"{name} was removed.")
    return ret


def packed(name: str, **options: Any) -> dict[str, Any]:
    """
    Have a bundle built, on a build machine, for :py:func:`managed` to deploy.

    Nothing is done where it exists and none of its inputs has changed. Otherwise the packages are
    installed into an environment that is kept, of which only what differs is changed, and that is
    packed. A build that fails leaves the previous bundle.

    name
        The bundle: a path that ends in ``.tar``, ``.tar.gz`` or ``.tar.zst``; ``{commit}`` in it is
        replaced by the commit. Its SHA-256 is written beside it, as ``<name>.sha256``.

    options
        What to build, and how: all other arguments of :py:func:`virtualenv_tools.build`, such as
        ``requirements``, ``project``, ``pip_packages``, ``python``, ``cache`` and ``env``. Where
        ``python`` is an interpreter bundle, that is put beside the bundle, and :py:func:`managed`
        deploys the release onto it.

    .. code-block:: yaml

        /srv/bundles/shop-{commit}.tar.zst:
          virtualenv_relocated.packed:
            - project: /srv/src/shop
            - requirements: /srv/src/shop/requirements.lock
            - require_hashes: True
            - python: '3.11'
            - delta_from: 2
            - require:
              - git: /srv/src/shop
    """
    ret = _new(name)
    given = {"saltenv": __env__, **_own(options), "test": __opts__["test"]}
    with _Reporting(ret):
        done = __salt__["virtualenv_tools.build"](_path(name, "the bundle"), **given)
        return _built(ret, done)
    return ret


def python_packed(
    name: str,
    prefix: str,
    keep: str | list[str] | None = None,
    level: int | None = None,
    source_hash: str | None = None,
) -> dict[str, Any]:
    """
    Have a Python packed into a bundle of its own, on a build machine.

    The bundle is written where it does not exist, is damaged, or differs from what the prefix has
    now. A Python that cannot be packed leaves the previous bundle.

    name
        The bundle: a path that ends in ``.tar``, ``.tar.gz`` or ``.tar.zst``. Its SHA-256 is
        written beside it, as ``<name>.sha256``.

    prefix
        The Python's, as ``path`` of :py:func:`virtualenv_tools.pack_python`: a directory, or a
        published archive, by its path or URL.

    keep, level, source_hash
        As :py:func:`virtualenv_tools.pack_python` takes them.

    .. code-block:: yaml

        /srv/salt/pythons/cpython-3.13.0-x86_64.tar.zst:
          virtualenv_relocated.python_packed:
            - prefix: /opt/pythons/3.13.0

        /srv/salt/pythons/cpython-3.13.0-standalone.tar.zst:
          virtualenv_relocated.python_packed:
            - prefix: salt://cpython-3.13.0+20241016-x86_64-unknown-linux-gnu-install_only.tar.gz
            - source_hash: 2c8cb15c6a2caadaa98af51df6fe78a8155b8471cb3dd7b9836038e0d3657fb4
    """
    ret = _new(name)
    with _Reporting(ret):
        archive = _path(name, "the bundle")
        done = __salt__["virtualenv_tools.pack_python"](
            prefix if "://" in str(prefix) else _path(prefix, "the prefix"),
            archive,
            keep=keep,
            level=level,
            source_hash=source_hash,
            saltenv=__env__,
            test=__opts__["test"],
        )
        _warn(ret, done["warnings"])
        python = f"Python {done['version']} of {prefix}"
        if not done["changed"]:
            return _with(ret, True, f"{name} exists, and has {python} as it is.")
        if done["dry_run"]:
            ret["changes"] = {"bundle": {"new": name}}
            return _with(ret, None, f"{name} would be packed from {python}.")
        ret["changes"] = {"bundle": {"new": done["sha256"]}}
        count, size = f"{done['files']:,} members", f"{done['packed_size'] / 1e6:,.1f} MB packed"
        return _with(ret, True, f"{name} was packed from {python}: {count}, {size}.")
    return ret


def mod_watch(name: str, sfun: str | None = None, **kwargs: Any) -> dict[str, Any]:
    """
    What a ``watch`` or ``listen`` calls when what is watched has changed: the state once more.

    Salt puts the answer in the place of the state's own one, so a state that has failed has to fail
    again here. For :py:func:`healthy` behind a ``listen`` it is the checks at the end of the run.

    .. note::
        Not to be called directly.

    .. code-block:: yaml

        app answers:
          virtualenv_relocated.healthy:
            - link: /srv/app/current
            - checks: http://127.0.0.1:8000/health
            - listen:
              - service: app
    """
    functions = (
        *(managed, migrated, active, rolled_back, healthy, pruned, absent, reinitialized),
        *(others_reinitialized, packed, python_packed),
    )
    function = {one.__name__: one for one in functions}.get(str(sfun))
    if function is None:
        return _with(_new(name), False, f"There is no state {sfun} to be watched for.")
    return function(name, **_own(kwargs))


# --- answers --------------------------------------------------------------------------------------


def _new(name: str) -> dict[str, Any]:
    return {"name": name, "changes": {}, "result": False, "comment": ""}


def _with(ret: dict[str, Any], result: bool | None, comment: str) -> dict[str, Any]:
    ret["result"] = result
    ret["comment"] = comment
    return ret


class _Reporting:
    """Whatever goes wrong, as one sentence in the answer; no traceback is for an operator."""

    def __init__(self, ret: dict[str, Any]) -> None:
        self.ret = ret

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        what: object = error
        if isinstance(error, OSError) and not isinstance(error, SaltException):
            # Salt's own functions let some pass, of files that do not exist.
            what = f"cannot read {error.filename}: {(error.strerror or str(error)).lower()}"
        elif not isinstance(error, SaltException):
            log.error("Unexpected error", exc_info=error)
            what = (
                f"unexpected {type(error).__name__}: {error}; this is a bug: please report it with "
                "the traceback in the minion's log"
            )
        _with(self.ret, False, _sentence(what))
        return True


def _sentence(error: object) -> str:
    text = " ".join(str(error).split())
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _deployed(ret: dict[str, Any], name: str, source: str, done: dict[str, Any]) -> dict[str, Any]:
    if not done["changed"]:  # another run was faster
        return _with(ret, True, f"{name} is deployed.")
    ret["changes"] = {
        "release": {"old": None, "new": name},
        "files": done["files"],
        "python": done["python"],
        "rewritten": done["rewritten"],
    }
    _compare(ret, name, name)
    _warn(ret, done["problems"])
    size = f"{done['files']:,} members, {done['size'] / 1e6:,.1f} MB"
    if done["reused"]:
        size += f", {done['reused']:,} files taken from another release"
    return _with(ret, True, f"{name} was deployed from {source}: {size}.")


def _followed(ret: dict[str, Any], done: dict[str, Any]) -> dict[str, Any]:
    """The answer about the releases that follow the active one onto its Python."""
    python, moved, waiting = done["python"], done["moved"], done["waiting"]
    left = f" As they were: {_by_reason(done['left'])}." if done["left"] else ""
    if moved:
        ret["changes"]["pythons"] = {one: {"old": old, "new": python} for one, old in moved.items()}
    if done["failed"]:
        failed = _by_reason(done["failed"])
        return _with(ret, False, f"Not put onto {python}: {failed}.{left}")
    names = ", ".join(moved)
    if not moved:
        every = "No other release is put onto" if left else "All other releases are on"
        return _with(ret, True, f"{every} {python}.{left}")
    if done["dry_run"]:
        once = f", once {done['active']} is healthy on it" if waiting else ""
        return _with(ret, None, f"{names} would be put onto {python}{once}.{left}")
    were = "was" if len(moved) == 1 else "were"
    return _with(ret, True, f"{names} {were} put onto {python}.{left}")


def _by_reason(reasons: Mapping[str, str]) -> str:
    """Releases with the reason for each, which several may have in common."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names[reason])}: {reason}" for reason in names)


def _counted(names: list[str], what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def _onto(python: Any, unpacked: str | None, named: str | None) -> str:
    """Which interpreter of a bundle a release would be put onto, as the end of a sentence.

    Args:
        python: as it was given.
        unpacked: the interpreter, where it is there.
        named: the bundle that the release's manifest names, where that is not unpacked.
    """
    if unpacked:
        return f", onto {unpacked}"
    source = _python_source(python) if isinstance(python, (dict, list)) else named
    return f", onto the Python of {source}, which would be unpacked" if source else ""


def _python_source(python: Any) -> Any:
    """The bundle of an interpreter; any other Python as it was given."""
    if isinstance(python, list):
        python = {key: value for one in python for key, value in one.items()}
    return python.get("source") if isinstance(python, dict) else python


def _at_hand(source: str) -> str | None:
    """Where a source is on this machine already; None where it would have to be fetched."""
    if not source.startswith("/"):
        source = __salt__["cp.is_cached"](source) if source.startswith("salt://") else ""
    return source if os.path.isfile(source) else None


def _compare(ret: dict[str, Any], name: str, build: str | None) -> None:
    """Note how the packages of a build differ from those of the active release."""
    active = os.path.realpath(os.path.join(os.path.dirname(name), "current"))
    if build is None or active == os.path.realpath(name) or not os.path.isdir(active):
        return
    try:
        found = __salt__["virtualenv_tools.diff"](active, build, brief=True)
    except SaltException as error:  # such as an archive of another tool: it is for reading only
        log.debug("%s is not compared with %s: %s", build, active, error)
        return
    ret["changes"]["packages"] = f"{found['summary']} (since {os.path.basename(active)})"


def _built(ret: dict[str, Any], done: dict[str, Any]) -> dict[str, Any]:
    """The answer of a build."""
    archive, old = done["archive"], done["old_sha256"]
    if not done["changed"]:
        return _with(ret, True, f"{archive} exists, and none of its inputs has changed.")
    if done["dry_run"]:
        if not done["reason"]:
            ret["changes"] = {"interpreter": {"old": None, "new": done["interpreter"]}}
            return _with(ret, None, f"{done['interpreter']} would be put beside {archive}.")
        ret["changes"] = {"bundle": {"old": old, "new": archive}}
        return _with(ret, None, f"{archive} would be built, as {done['reason']}.")
    if done["reason"] and done["sha256"] != old:
        changes = {"installed": done["installed"], "removed": done["removed"]}
        ret["changes"] = {"bundle": {"old": old, "new": done["sha256"]}}
        changes["deltas"] = {key: f"{size / 1e6:,.3f} MB" for key, size in done["deltas"].items()}
        ret["changes"].update({key: value for key, value in changes.items() if value})
    beside = ""
    if done["interpreter_added"]:
        ret["changes"]["interpreter"] = {"old": None, "new": done["interpreter"]}
        beside = f" {done['interpreter']} was put beside it."
    if not done["reason"]:
        return _with(ret, True, f"{archive} exists, and none of its inputs has changed.{beside}")
    _warn(ret, done["warnings"])
    count, size = f"{done['files']:,} members", f"{done['packed_size'] / 1e6:,.1f} MB packed"
    same = ", and is the same as before" if done["sha256"] == old else ""
    return _with(
        ret,
        True,
        f"{archive} was built by {done['installer']} for Python {done['python']}: {count}, "
        f"{size}{same}.{beside}",
    )


def _warn(ret: dict[str, Any], problems: list[dict[str, str]]) -> None:
    """Put problems into an answer, but no more of them than anybody reads."""
    lines = [f"{one['file']}: {one['reason']}" for one in problems]
    if lines:
        more = len(lines) - _SHOWN_PROBLEMS
        ret["warnings"] = lines[:_SHOWN_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])


def _repaired(
    ret: dict[str, Any], name: str, looked: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Put a release onto another Python, as its own is gone."""
    old, new = looked["old_python"], _python_source(options.get("python"))
    ret["changes"] = {"python": {"old": old, "new": new or "one that fits"}}
    if __opts__["test"]:
        return _with(ret, None, f"{name} lacks its Python, and would be put onto another one.")
    done = __salt__["virtualenv_tools.unpack"](looked["path"], name, **options)
    ret["changes"] = {"python": {"old": done["old_python"], "new": done["python"]}}
    _warn(ret, done["problems"])
    return _with(ret, True, f"{name} lacked its Python; now it is on {done['python']}.")


def _migrated(ret: dict[str, Any], name: str, done: dict[str, Any]) -> dict[str, Any]:
    """The answer of a migration."""
    host = done["host"]
    if done["lacking"]:
        lacking = ", ".join(done["lacking"])
        return _with(
            ret, None, f"{name} would wait for {host} to migrate the schema, which lacks {lacking}."
        )
    if done["left"]:
        return _with(
            ret,
            True,
            f"The schema is newer than what {name} ran with, and is left so: {host} migrates it "
            "for all minions, and down only by the runner releases.rollback.",
        )
    if not done["changed"]:
        return _with(ret, True, f"The schema is as {name} needs it.")
    ret["changes"] = {"schema": {"old": done["old"], "new": done["new"]}}
    for key in ("applied", "undone"):
        if done[key]:
            ret["changes"][key] = done[key]
    what = f"migrated down to what {name} ran with" if done["undone"] else f"migrated for {name}"
    if done["dry_run"]:
        return _with(ret, None, f"The schema would be {what}.")
    return _with(ret, True, f"The schema was {what}.")


def _schema_left(switch: Mapping[str, Any]) -> str:
    """Why a rollback has left the schema as it is, as one more sentence."""
    why = switch.get("schema_left")
    return f" The schema is left as it is: {why}." if why else ""


# --- arguments ------------------------------------------------------------------------------------


def _path(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.startswith("/"):
        raise SaltInvocationError(f"{what} must be an absolute path: {value}")
    return value.rstrip("/") or value


def _own(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What is written in a state, without what Salt adds to it."""
    return {
        key: value
        for key, value in arguments.items()
        if key not in STATE_INTERNAL_KEYWORDS and not key.startswith("__")
    }


def _passed_on(options: Mapping[str, Any], function: str) -> dict[str, Any]:
    """The options of a state that are a function's; refuses what the function does not know."""
    given = _own(options)
    known = get_function_argspec(__salt__[f"virtualenv_tools.{function}"]).args
    known = [key for key in known if key not in _NO_OPTIONS]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f", did you mean {near[0]}?" if near else f": there are {', '.join(known)}"
            raise SaltInvocationError(f"unknown key {key}{hint}")
    return given


def _target(name: str, target: Any) -> str:
    """The release's path."""
    if not target:
        raise SaltInvocationError(
            "target is missing: give the release that the link should point to"
        )
    target = str(target)
    return target if target.startswith("/") else os.path.join(os.path.dirname(name), target)


def _active(name: str) -> Any:
    return __salt__["virtualenv_tools.active"](name)["release"]


def _variables(env: Any) -> Any:
    """Variables as one dictionary; Salt's own states take a list of them as well."""
    if isinstance(env, list) and all(isinstance(one, Mapping) for one in env):
        return {name: value for one in env for name, value in one.items()}
    return env


def _number(value: Any, what: str, least: float) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < least:
        raise SaltInvocationError(f"{what} must be a number of at least {least:g}: {value!r}")
    return value


def _full(
    source: Any, source_hash: Any, skip_verify: bool
) -> tuple[Any, dict[str, tuple[str, Any]]]:
    """The full archive, and the delta bundles by release, with what they have to hash to."""
    if not (isinstance(source, Mapping) and "full" in source):
        return source, {}
    named = source.get("from") or {}
    if set(source) - {"full", "from"} or not isinstance(named, Mapping):
        raise SaltInvocationError(
            f"a source with full has nothing else but from, the delta bundles by release: {source}"
        )
    found = {}
    for release, one in named.items():
        if isinstance(one, Mapping):
            place, known = one.get("source"), one.get("source_hash")
        else:
            place, known = one, _hash_beside(source["full"], one, source_hash)
        found[str(release)] = (_sources([place], known, skip_verify)[0], known)
    return source["full"], found


def _sources(source: Any, source_hash: Any, skip_verify: bool) -> list[str]:
    """The URLs or paths of the archive; refuses those that cannot be verified."""
    given = list(source) if isinstance(source, (list, tuple)) else [source] if source else []
    places: list[str] = []
    for one in given:
        hashed = bool(source_hash)
        if isinstance(one, Mapping) and len(one) == 1:  # {URL: hash}, as Salt's list of sources has
            hashed = True
            one = next(iter(one))
        if not isinstance(one, str) or not re.match(r"/|[a-z0-9]+://", one):
            raise SaltInvocationError(f"a source must be a URL or an absolute path: {one}")
        ours = one.startswith(("/", "salt://", "file://"))
        if not (ours or hashed or skip_verify):
            raise SaltInvocationError(
                f"cannot verify {one}: give its source_hash, or skip_verify: True"
            )
        places.append(one)
    if not places:
        raise SaltInvocationError("source is missing: give the archive of the virtualenv")
    return places


# --- the archive ----------------------------------------------------------------------------------


class _Trust(NamedTuple):
    """How an archive is verified, besides by its hash."""

    source_hash_name: str | None
    skip_verify: bool
    signature: Any
    source_hash_sig: Any
    signers: dict[str, Any]
    sig_backend: str


def _deploy(
    name: str,
    source: str,
    source_hash: Any,
    trust: _Trust,
    options: dict[str, Any],
    keep_source: bool,
) -> dict[str, Any]:
    """Fetch an archive and make it the release; what `virtualenv_tools.unpack` returns."""
    digest = _digest(source, source_hash, trust)
    fetched = file = _fetched(source, source_hash, trust)
    try:
        with ExitStack() as stack:
            if trust.signature and not digest:
                # What is signed is what is unpacked, and as good as an archive of a known hash:
                # root may run the interpreter that its manifest names by digest.
                file = stack.enter_context(_held(fetched))
                digest = f"sha256={__salt__['file.get_hash'](file, 'sha256')}"
            if trust.signature:
                _require_signature(file, source, trust)
            return dict(
                __salt__["virtualenv_tools.unpack"](
                    file, name, source_hash=digest, source=source, **options
                )
            )
    finally:
        if not keep_source and _is_cached(fetched):
            __salt__["file.remove"](fetched)


@contextmanager
def _held(file: str) -> Iterator[str]:
    """An archive where nobody else can replace it after it was verified: in Salt's cache."""
    if _is_cached(file):
        yield file
        return
    if not os.path.isfile(file):
        raise CommandExecutionError(f"cannot read {file}: it is no file; name a readable one")
    with tempfile.TemporaryDirectory(dir=__opts__["cachedir"], prefix="signed-") as directory:
        held = os.path.join(directory, os.path.basename(file))
        shutil.copyfile(file, held)
        try:
            yield held
        except CommandExecutionError as error:  # an operator knows the archive by its own name
            raise CommandExecutionError(str(error).replace(held, file)) from error


def _is_cached(file: str) -> bool:
    """Whether a file is in Salt's cache, and not the archive itself."""
    return os.path.realpath(file).startswith(os.path.realpath(__opts__["cachedir"]) + os.sep)


def _deltas(
    name: str,
    source: Any,
    source_hash: Any,
    named: dict[str, tuple[str, Any]],
    trust: _Trust,
) -> Iterator[tuple[str, Any]]:
    """The delta bundles from deployed releases, and their hashes: from the active one first."""
    root = os.path.dirname(name)
    deployed = __salt__["virtualenv_tools.releases"](root)
    bundles = [release for release, facts in deployed.items() if facts.get("bundle")]
    bundles.sort(key=lambda release: not deployed[release].get("active"))
    for release in bundles[:_MOST_DELTAS]:
        if release in named:
            yield named[release]
        elif isinstance(source, str) and not named and not trust.signature:
            place = _delta(source, str(deployed[release].get("source") or release))
            ours = source.startswith(("/", "file://", "salt://"))
            if place and ours and not _is_hash(source_hash) and _is_there(place):
                yield place, _hash_beside(source, place, source_hash)


def _delta(source: str, base: str) -> str | None:
    """The name of a delta bundle from another one, beside the full one."""
    directory, _, name = source.rpartition("/")
    match = _BUNDLE.match(name)
    known = _BUNDLE.match(os.path.basename(base))
    stem = known[1] if known else os.path.basename(base)
    return f"{directory}/{match[1]}.from-{stem}{match[2]}" if match else None


def _is_hash(source_hash: Any) -> bool:
    """Whether it is the hash of one archive, and no file of hashes."""
    return bool(source_hash) and not re.match(r"/|[a-z0-9]+://", str(source_hash))


def _hash_beside(source: Any, place: Any, source_hash: Any) -> Any:
    """The source of another archive's hash; None where only the full one's is known."""
    if not source_hash or _is_hash(source_hash):
        return None
    base = os.path.basename(source) if isinstance(source, str) else ""
    if base and base in str(source_hash):  # each has a file of its own
        return str(source_hash).replace(base, os.path.basename(str(place)))
    return source_hash


def _is_there(place: str) -> bool:
    if place.startswith("salt://"):
        return bool(__salt__["cp.hash_file"](place, __env__))
    return os.path.isfile(_local(place))


def _chosen(source: Any, source_hash: Any) -> tuple[str, Any]:
    """The first source that exists, and its hash."""
    if isinstance(source, str):
        return source, source_hash
    source = [source] if isinstance(source, Mapping) else source
    try:
        chosen, known = __salt__["file.source_list"](source, source_hash, __env__)
    except CommandExecutionError as error:  # whatever it was, Salt finds none and names none
        places = (next(iter(one)) if isinstance(one, Mapping) else one for one in source)
        raise CommandExecutionError(
            f"none of {', '.join(places)} was found: see that one of them exists, and that this "
            "minion may read it; its log has the reasons"
        ) from error
    return chosen, known


def _require_one(sources: list[str]) -> None:
    """Refuse sources that are all on this machine, where none exists."""
    places = [_local(source) for source in sources]
    if all(place.startswith("/") and not os.path.exists(place) for place in places):
        if len(places) > 1:
            raise CommandExecutionError("none of the sources exists")
        raise CommandExecutionError(
            f"cannot unpack {places[0]}: no such file or directory; name a readable file"
        )


def _digest(source: str, source_hash: Any, trust: _Trust) -> str | None:
    """What the archive has to hash to, as `algorithm=hex`."""
    if not source_hash:
        return None
    function = __salt__["file.get_source_sum"]
    with _fetching(source_hash):
        known = function(
            source=source,
            source_hash=source_hash,
            source_hash_name=trust.source_hash_name,
            saltenv=__env__,
            **_hash_signatures(function, trust),
        )
    return f"{known['hash_type']}={known['hsum']}"


def _hash_signatures(function: Any, trust: _Trust) -> dict[str, Any]:
    """The arguments of a function of Salt's about the signature of a file of hashes."""
    if trust.source_hash_sig is None:
        return {}
    backend = None if trust.sig_backend == "gpg" else trust.sig_backend
    arguments = {"source_hash_sig": trust.source_hash_sig, "sig_backend": backend}
    return _given(function, {**trust.signers, **arguments})


def _given(function: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that were given; refuses those that this minion's Salt is too old for."""
    given = {key: value for key, value in arguments.items() if value is not None}
    unknown = set(given).difference(get_function_argspec(function).args)
    if unknown:
        raise CommandExecutionError(
            f"cannot verify a signature by {', '.join(sorted(unknown))} on this minion: that needs "
            "Salt 3007, or for sig_backend 3008"
        )
    return given


def _local(source: str) -> str:
    return source.removeprefix("file://")


def _fetched(source: str, source_hash: Any, trust: _Trust) -> str:
    """The archive as a file on this machine, fetched as Salt's own states do it."""
    if _local(source).startswith("/"):
        return _local(source)
    function = __states__["file.cached"]
    cached = function(
        source,
        source_hash=source_hash or "",
        source_hash_name=trust.source_hash_name,
        skip_verify=trust.skip_verify,
        saltenv=__env__,
        **_hash_signatures(function, trust),
    )
    file = cached["result"] and __salt__["cp.is_cached"](source, saltenv=__env__)
    if not file:
        reason = str(cached["comment"]).strip().rstrip(".")
        raise CommandExecutionError(f"cannot fetch {source}: {reason}; {_SEE}")
    return str(file)


@contextmanager
def _fetching(source: str) -> Iterator[None]:
    """Report what cannot be fetched, and why: Salt's own functions raise the reason alone."""
    try:
        yield
    except (CommandExecutionError, SaltInvocationError):  # these are sentences
        raise
    except (SaltException, OSError) as error:
        strerror = error.strerror if isinstance(error, OSError) else None
        reason = strerror.lower() if strerror else str(error)
        raise CommandExecutionError(f"cannot fetch {source}: {reason}; {_SEE}") from error


def _require_signature(file: str, source: str, trust: _Trust) -> None:
    """Have the archive's own signature verified by Salt's module for that."""
    verify = f"{trust.sig_backend}.verify"
    if verify not in __salt__:
        raise CommandExecutionError(
            f"cannot verify the signature: Salt's module {trust.sig_backend} is not usable on this "
            "minion; install what it needs"
        )
    single = isinstance(trust.signature, str)
    places = [trust.signature] if single else list(trust.signature)
    found = []
    for place in places:
        with _fetching(f"the signature {place}"):
            found.append(__salt__["cp.cache_file"](place, __env__))
        if not (found[-1] and os.path.isfile(found[-1])):
            raise CommandExecutionError(f"cannot fetch the signature {place}: {_SEE}")
    given = _given(__salt__[verify], trust.signers)
    seen = __salt__[verify](filename=file, signature=found[0] if single else found, **given)
    if seen["res"] is not True:
        raise CommandExecutionError(
            f"the signature of {source} is not accepted: {seen['message']}; nothing was deployed"
        )


# --- health ---------------------------------------------------------------------------------------


def _checks(checks: Any, user: str | None, timeout: float) -> Iterator[dict[str, Any]]:
    """Every check in its long form."""
    given = list(checks) if isinstance(checks, (list, tuple)) else [checks] if checks else []
    if not given:
        raise SaltInvocationError("checks is missing: give at least a URL or a command")
    for one in given:
        check = {"url" if re.match(r"https?://", one) else "cmd": one} if _is_text(one) else one
        if not _is_check(check):
            raise SaltInvocationError(
                "a check is a URL, a command, or one of url (with a status and a regular "
                f"expression to match) and cmd (with a user): {one!r}"
            )
        yield {"user": user, **check, "timeout": _number(timeout, "timeout", 0.1)}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_check(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    known = {"url", "status", "match"} if "url" in value else {"cmd", "user"}
    status = str(value.get("status", 200))
    try:
        re.compile(value.get("match", ""))
    except (re.error, TypeError):
        return False
    return set(value) <= known and _is_text(value.get("url", value.get("cmd"))) and status.isdigit()


def _failure(
    checks: list[dict[str, Any]], release: str, attempts: int, interval: float
) -> str | None:
    """What keeps failing; None where every check passes."""
    for check in checks:
        failure = None
        for attempt in range(int(attempts)):
            if attempt:
                time.sleep(interval)
            failure = _asked(check) if "url" in check else _ran(check, release)
            if failure is None:
                break
        if failure is not None:
            return failure
    return None


def _asked(check: dict[str, Any]) -> str | None:
    """Why a page is not as it should be."""
    url, status = check["url"], int(check.get("status", 200))
    seconds = check["timeout"]
    answer = __salt__["http.query"](
        url,
        status=True,
        text=True,
        decode_body=False,
        raise_error=False,
        opts={"http_request_timeout": seconds, "http_connect_timeout": seconds},
    )
    found = answer.get("status")
    if found != status:
        if found and found != _NO_ANSWER:
            return f"{url} answers with {found}"
        return f"{url} does not answer ({answer.get('error') or 'timeout'})"
    page = answer.get("text") or answer.get("body") or ""
    if isinstance(page, bytes):
        page = page.decode(errors="replace")
    if "match" in check and not re.search(check["match"], page):
        return f"{url} answers without {check['match']!r}"
    return None


def _ran(check: dict[str, Any], release: str) -> str | None:
    """Why a command does not succeed."""
    done = __salt__["virtualenv_tools.run"](
        release, check["cmd"], user=check["user"], timeout=check["timeout"]
    )
    code = done["code"]
    if code == 0:
        return None
    reason = f"exit code {code}"
    if code is None:
        reason = f"it took longer than {check['timeout']:g} seconds"
    said = [line.strip() for line in done["output"] if line.strip()][-1:]
    return f"`{check['cmd']}` fails ({': '.join([reason, *said])})"


def _rolled_back(
    ret: dict[str, Any],
    link: str,
    release: str,
    failure: str,
    checks: list[dict[str, Any]],
    attempts: int,
    interval: float,
) -> dict[str, Any]:
    """Roll back, restart what is watched, and check whether the previous release is healthy."""
    root, _, name = link.rpartition("/")
    try:
        switch = __salt__["virtualenv_tools.rollback"](
            root, link=name, leaving=release, reason=failure
        )
    except SaltException as error:
        return _with(ret, False, f"{release} is not healthy: {failure}. It stays: {error}.")
    if not switch["changed"]:
        return _with(ret, False, f"{release} was not healthy, and is not active any more.")
    ret["changes"] = {"release": {"old": release, "new": switch["release"]}}
    if switch.get("schema"):
        ret["changes"]["schema"] = switch["schema"]
    path = os.path.join(root, switch["release"])
    after = _after_restart(ret, link, path, checks, attempts, interval)
    down = "the schema was migrated down, " if switch.get("schema") else ""
    return _with(
        ret,
        False,
        f"{release} is not healthy: {failure}. It is marked bad, {down}and {link} points to "
        f"{switch['release']} again. {after}.{_schema_left(switch)}",
    )


def _put_back(
    ret: dict[str, Any],
    link: str,
    path: str,
    failure: str,
    checks: list[dict[str, Any]],
    attempts: int,
    interval: float,
) -> dict[str, Any]:
    """Put it onto the Python before, restart what is watched, and check whether it is healthy."""
    release = os.path.basename(path)
    try:
        done = __salt__["virtualenv_tools.put_back"](path, reason=failure)
    except SaltException as error:
        return _with(ret, False, f"{release} is not healthy: {failure}. {error}.")
    ret["changes"] = {"python": {"old": done["old_python"], "new": done["python"]}}
    after = _after_restart(ret, link, path, checks, attempts, interval)
    return _with(
        ret,
        False,
        f"{release} is not healthy on {done['old_python']}: {failure}. It runs on {done['python']} "
        f"again. {after}.",
    )


def _after_restart(
    ret: dict[str, Any],
    link: str,
    path: str,
    checks: list[dict[str, Any]],
    attempts: int,
    interval: float,
) -> str:
    """Restart what this state watches, and say whether a release is healthy then."""
    restarted = list(_restarted())
    if restarted:
        ret["changes"]["restarted"] = restarted
    still = _failure(checks, path, attempts, interval)
    if still is not None:
        return f"Now {still}"
    __salt__["virtualenv_tools.mark_healthy"](path, link=link)
    return f"{os.path.basename(path)} is healthy"


def _restarted() -> Iterator[str]:
    """Restart what this state watches, the way a watch of its own would; report what it was."""
    for chunk in __lowstate__:
        kind = chunk["state"]
        if not _is_watched(chunk) or f"{kind}.mod_watch" not in __states__:
            continue
        done = __states__[f"{kind}.mod_watch"](**_own(chunk), sfun=chunk["fun"])
        log.info("%s.mod_watch %s: %s", kind, chunk["name"], done.get("comment"))
        failed = "" if done.get("result") else f" (failed: {done.get('comment')})"
        yield f"{kind} {chunk['name']}{failed}"


def _is_watched(chunk: Mapping[str, Any]) -> bool:
    """Whether this state watches another one, named in one of the ways that Salt knows."""
    if chunk["state"] == __low__["state"]:  # a link is no service
        return False
    for requisite in (*__low__.get("watch", ()), *__low__.get("watch_any", ())):
        named = requisite if isinstance(requisite, Mapping) else {"id": requisite}
        for kind, wanted in named.items():
            if kind == "sls":
                found = fnmatch(chunk.get("__sls__", ""), wanted)
            else:
                found = kind in ("id", chunk["state"]) and (
                    fnmatch(chunk["__id__"], wanted) or fnmatch(chunk["name"], wanted)
                )
            if found or (wanted in (chunk["__id__"], chunk["name"]) and kind == chunk["state"]):
                return True
    return False

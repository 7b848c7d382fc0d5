"""
Releases on a whole fleet: which minion is on which one, and a new one rolled out step by step.

:py:func:`fleet` asks all minions once, and reports the release of each, those that lag behind, what
is marked bad, who deployed when, and what the schema of a shared database is at. :py:func:`roll`
brings a release to a few minions first and then to the others in batches, and rolls back where one
of them fails. :py:func:`rollback` rolls back all minions.

Where many minions use one database, and one of them is the ``host`` that migrates it, the schema
goes up before the first minion is switched, and down after the last one is back.

It comes to the master with ``salt-run saltutil.sync_runners`` or with the installed package; the
minions need the execution module ``virtualenv_tools``.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import salt.client
import salt.loader
import salt.utils.dictupdate
import salt.utils.event
import salt.utils.master
from salt.exceptions import SaltException, SaltInvocationError

if TYPE_CHECKING:
    from salt_dunders import __context__, __jid__, __jid_event__, __opts__, __tag__

log = logging.getLogger(__name__)

__virtualname__ = "releases"
__load__ = ["fleet", "roll", "rollback"]

_TOOLS = "virtualenv_tools"
# How much of a minion's history is asked for: the switch to its release is rarely further back.
_EVENTS = 20
_ASKED = ("active", "releases", "history", "schemas", "claimed")
# A number has a minion wait for a state run that is under way. With `True` Salt 3008 puts the job
# aside and answers at once.
_QUEUE = 10
_SHOWN_MINIONS = 3
# The formula's name, whatever file root it is in, and where it reads an app's release.
_FORMULA = re.compile(r"(?:[^.]+\.)*?releases(?![^.])")
_APP_KEY = re.compile(r"releases:apps:([^:]+):release")
_SILENT = "does not answer"
# A claim lasts an hour; a step takes much less.
_RENEWAL = 600
# What may not run twice in one root.
_CHANGING = {"runner.releases.roll": "roll-out", "runner.releases.rollback": "rollback"}


def __virtual__() -> str:  # noqa: N807
    return __virtualname__


def fleet(
    root: str | None = None,
    tgt: str = "*",
    tgt_type: str = "glob",
    release: str | None = None,
    link: str = "current",
    brief: bool = False,
    timeout: int | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """
    Report which minion is on which release, and what is odd.

    All minions are asked at once, in one job; nothing is changed.

    root
        The directory of the releases on the minions, as an absolute path.

    tgt, tgt_type
        Which minions, as for the command ``salt``.

    release
        The release that they should be on. By default the one that most of them are on.

    link
        The link's name.

    brief
        ``True`` leaves the details of each minion out.

    timeout
        Seconds to wait for an answer before Salt asks whether the minion is still there.

    Returns a dictionary:

    ``comment``
        The result, in a sentence.
    ``release``
        The release that most of them are on, or the one that was asked for.
    ``releases``
        The minions, by release.
    ``stragglers``
        What is wrong with each minion that is not on that release.
    ``bad``
        The minions on which a release is marked bad, by release and reason.
    ``schemas``
        Of each schema that one minion migrates for all: ``schema``, ``host`` (that minion),
        ``place`` (the database), ``version`` (``None`` where that is not known), of its last
        change ``since`` (UTC), ``release`` (that it was migrated for) and ``job``, and ``misfits``:
        which minions run a release that it does not fit, and why.
    ``minions``
        Of each minion its ``release``, ``since`` when (UTC), ``how`` it came there (``activated``
        or ``rolled back``), ``job`` and ``user`` of that as far as the job cache knows them,
        whether it was found ``healthy``, the ``interpreter`` that it shares with other releases
        (``None`` where it runs on a Python of the machine), and its ``problem``, if any.

    CLI Example:

    .. code-block:: bash

        salt-run releases.fleet /srv/shop
        salt-run releases.fleet /srv/shop tgt='web*' release=4f2a9c1 --out=json
        salt-run releases.fleet /srv/shop tgt='G@role:web and not web7' tgt_type=compound
    """

    def answer() -> dict[str, Any]:
        _refuse_unknown(kwargs)
        directory = _root(root)
        found = _standings(directory, _name(link, "the link"), tgt, tgt_type, _timeout(timeout))
        wanted = None if release is None else _name(release, "the release")
        overview = _overview(directory, found, wanted)
        if not brief:
            overview["minions"] = _details(found)
        return overview

    return _answered({"root": root}, answer)


def roll(
    root: str | None = None,
    release: str | None = None,
    tgt: str | list[str] = "*",
    tgt_type: str = "glob",
    canary: int | str | list[str] = 1,
    batch: int | str = "25%",
    sls: str | list[str] = "releases",
    pillar: dict[str, Any] | None = None,
    pillar_key: str = "releases:apps:{app}:release",
    pause: float = 0,
    link: str = "current",
    saltenv: str | None = None,
    pillarenv: str | None = None,
    timeout: int | None = None,
    test: bool = False,
    **kwargs: Any,
) -> dict[str, Any]:
    """
    Bring a release to a few minions first, then to the others in batches; roll back on a failure.

    On each minion an SLS is applied, with the release in its pillar. A minion has failed where one
    of its states has, such as :py:func:`virtualenv_relocated.healthy`, where it does not answer, or
    where it is not on the release then. Nothing more is rolled out after that, and all minions that
    this run has switched are rolled back, each to its previous release, by the same SLS and in
    batches of the same size. There the release is marked bad, so that no highstate brings it back
    before :py:func:`virtualenv_tools.unmark_bad`.

    With the formula, and a ``host`` in an app's ``migrations``, the minions of a step unpack the
    release first, and before the first switch the host migrates the schema. After a failure it
    migrates it down again, but only where all minions are back on what they had; else the schema is
    left as it is, and that is reported. With SLS files of your own the host has to be in the first
    step.

    It may be called again at any time: a minion that has the release already is skipped, so a
    roll-out that was interrupted goes on. One that does not answer in the beginning is left out,
    and reported as missing. While it runs, another one on the same minions is refused, also that of
    another master.

    The release is in the pillar of this run only. Write it into the pillar itself when it is rolled
    out, as the next highstate deploys the release that the pillar has.

    With the formula ``releases`` it is about one app: ``releases:run:app`` selects it in the
    pillar of this run, so no other app of a minion is touched, or counts. And the formula verifies
    the pillar of all minions before the first one is switched.

    root
        The directory of the releases on the minions, as an absolute path.

    release
        The release's name. One that is all digits has to be in two pairs of quotes where it begins
        with a zero.

    tgt, tgt_type
        Which minions, as for the command ``salt``.

    canary
        How many minions come first, or a list of them; 0 for none.

    batch
        How many minions are switched at once after that: a number, or a percentage such as ``25%``.

    sls
        What to apply, a name or a list of names.

    pillar
        More of pillar, for this run only.

    pillar_key
        Where in pillar the release is read from; ``{app}`` is the last part of the root. For an app
        of the formula with another name than its directory has: ``releases:apps:NAME:release``.

    pause
        Seconds to wait between two steps.

    link
        The link's name.

    saltenv, pillarenv
        The environments of the SLS and of the pillar. By default those of the minion.

    timeout
        Seconds to wait for an answer before Salt asks whether the minion is still there. An SLS may
        take as long as it wants.

    test
        ``True`` reports on which minions it would be done, and in which order, and does none of it.
        For ``changes``, one minion of those on the same release fetches the full bundle, reads it
        and removes it again.

    Returns a dictionary:

    ``result``, ``comment``
        Whether all went well (``None`` with ``test``), and what happened, in a sentence or two.
        The call's return code is 1 where it did not.
    ``steps``
        The steps of the roll-out, each with its name and its minions.
    ``before``
        What each minion of the steps was on before.
    ``changes``
        How the packages of the release differ from that, and which migrations it brings; the
        minions, by a line such as ``django 5.2.1 -> 5.2.4, +orjson 3.11``.
    ``switched``
        Which minions are on the release by this run.
    ``skipped``
        Which ones had it already.
    ``failed``
        Why a minion has failed.
    ``back``
        The release that a minion is back on, by itself or by this run.
    ``stuck``
        Which minions could not be rolled back, and why.
    ``untouched``
        Which minions were not reached before the failure.
    ``missing``
        Which minions did not answer in the beginning.
    ``host``, ``schema``
        Who migrates the schema for all, and after a failure what became of it, in a sentence.

    CLI Example:

    .. code-block:: bash

        salt-run releases.roll /srv/shop 4f2a9c1 tgt='web*' test=True
        salt-run releases.roll /srv/shop 4f2a9c1 tgt='web*' canary=2 batch=10% pause=60
        salt-run releases.roll /srv/shop 4f2a9c1 sls=shop pillar_key=release canary='[web7]'
    """
    ret: dict[str, Any] = {"root": root, "release": release, "result": False, "comment": ""}

    def answer() -> dict[str, Any]:
        _refuse_unknown(kwargs)
        directory = _root(root)
        wanted = _Wanted(
            root=directory,
            release=_name(release, "the release"),
            canary=_canary(canary),
            batch=_batch(batch),
            sls=_sls(sls),
            pillar=_pillar(pillar),
            pillar_key=_pillar_key(pillar_key, directory),
            pause=_seconds(pause),
            link=_name(link, "the link"),
            saltenv=_environment(saltenv, "saltenv"),
            pillarenv=_environment(pillarenv, "pillarenv"),
            timeout=_timeout(timeout),
        )
        if not test:
            _refuse_second(directory)
        ret.update(release=wanted.release)
        found = _standings(directory, wanted.link, tgt, tgt_type, wanted.timeout)
        if not test:
            _drop_claims(wanted, found)
        plan = _plan(wanted, found)
        facts = _require_app(wanted, list(plan.before))
        host = _require_host(facts, plan, found)
        rollout = _Rollout(wanted, plan, host)
        result = None if plan.steps else True
        try:
            if test:
                rollout.compare(list(plan.before), facts or {})
            else:
                doing = f"roll-out of {wanted.release}"
                with _alone(wanted, list(plan.before), doing) as renew:
                    result = rollout.run(renew)
        finally:  # whatever interrupts it, the answer has what was done until then
            ret.update(rollout.facts())
        return {**ret, "result": result, "comment": rollout.comment(result)}

    return _answered(ret, answer)


def rollback(
    root: str | None = None,
    tgt: str | list[str] = "*",
    tgt_type: str = "glob",
    to: str | None = None,
    leaving: str | None = None,
    batch: int | str = "25%",
    reason: str = "",
    sls: str | list[str] = "releases",
    pillar: dict[str, Any] | None = None,
    pillar_key: str = "releases:apps:{app}:release",
    link: str = "current",
    saltenv: str | None = None,
    pillarenv: str | None = None,
    timeout: int | None = None,
    test: bool = False,
    **kwargs: Any,
) -> dict[str, Any]:
    """
    Roll all minions back to the previous release, in batches, and migrate the schema down last.

    Nothing is downloaded. The release that is rolled back is marked bad on each minion. It goes on
    where one minion fails; whatever is not back is reported, and the schema is left as it is until
    all are.

    It may be called again at any time, and after an interruption finishes the same rollback. It
    never goes a second release back by itself: that needs ``to``.

    root
        The directory of the releases on the minions, as an absolute path.

    tgt, tgt_type
        Which minions, as for the command ``salt``. They should be all that use the database: the
        schema is left as it is where another one runs what may need it.

    to
        The name of the release to roll back to. By default the previous one; all minions have to
        agree on that.

    leaving
        The name of the release to leave. By default the one that all of them are on; it is needed
        where they are on several. Those on another one stay as they are.

    batch
        How many minions are rolled back at once: a number, or a percentage such as ``25%``.

    reason
        Why, for the mark and the history.

    sls
        The formula, of which ``rollback`` is applied; or what restarts the programs of an app
        that is deployed otherwise, with the release in its pillar.

    pillar, pillar_key, link, saltenv, pillarenv, timeout
        As for :py:func:`roll`.

    test
        ``True`` reports what would be done, and does none of it.

    Returns a dictionary:

    ``result``, ``comment``
        Whether all are back (``None`` with ``test``), and what happened, in a sentence or two. The
        call's return code is 1 where not.
    ``to``, ``leaving``
        The releases.
    ``steps``
        The batches, each with its name and its minions.
    ``before``
        What each minion of the steps was on before.
    ``back``
        The release that a minion is back on.
    ``failed``
        Why a minion is not back, or not all of its states succeed.
    ``elsewhere``
        The minions that are on another release, and stay there.
    ``missing``
        Which minions do not answer.
    ``host``, ``schema``
        Who migrates the schema for all, and what became of it, in a sentence.

    CLI Example:

    .. code-block:: bash

        salt-run releases.rollback /srv/shop tgt='web*' test=True
        salt-run releases.rollback /srv/shop tgt='web*' reason='prices are wrong'
        salt-run releases.rollback /srv/shop tgt='web*' to=9c01b7e batch=100%
    """
    ret: dict[str, Any] = {"root": root, "result": False, "comment": ""}

    def answer() -> dict[str, Any]:
        _refuse_unknown(kwargs)
        directory = _root(root)
        wanted = _Wanted(
            root=directory,
            release="" if to is None else _name(to, "the release to roll back to"),
            canary=0,
            batch=_batch(batch),
            sls=_sls(sls),
            pillar=_pillar(pillar),
            pillar_key=_pillar_key(pillar_key, directory),
            pause=0,
            link=_name(link, "the link"),
            saltenv=_environment(saltenv, "saltenv"),
            pillarenv=_environment(pillarenv, "pillarenv"),
            timeout=_timeout(timeout),
        )
        if not test:
            _refuse_second(directory)
        found = _standings(directory, wanted.link, tgt, tgt_type, wanted.timeout)
        if not test:
            _drop_claims(wanted, found)
        left = None if leaving is None else _name(leaving, "the release to leave")
        wanted, left = _rollback_releases(wanted, left, found)
        run = _Rollback(wanted, left, str(reason), found)
        result = None
        try:
            if not test:
                doing = f"rollback to {wanted.release}"
                with _alone(wanted, list(run.before), doing) as renew:
                    result = run.run(renew)
        finally:
            ret.update(run.facts())
        return {**ret, "result": result, "comment": run.comment(result)}

    return _answered(ret, answer)


# --- answers --------------------------------------------------------------------------------------


def _answered(ret: dict[str, Any], answer: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `answer` returns; whatever goes wrong is one sentence, and Salt's return code is 1."""
    try:
        ret = answer()
    except SaltException as error:
        ret = {**ret, "result": False, "comment": _sentence(error)}
    except Exception as error:
        log.exception("Unexpected error")
        what = f"unexpected {type(error).__name__}: {error}"
        more = "this is a bug: please report it with the traceback in the log"
        ret = {**ret, "result": False, "comment": _sentence(f"{what}; {more}")}
    if ret.get("result") is False:
        __context__["retcode"] = 1
        ret["retcode"] = 1
    return ret


def _sentence(error: object) -> str:
    text = " ".join(str(error).split())
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _clause(text: object) -> str:
    """A sentence as a part of another one."""
    return " ".join(str(text).split()).rstrip(".")


def _first(text: str) -> str:
    """The first one of some sentences, as a part of another one."""
    return _clause(re.split(r"\.\s", text, maxsplit=1)[0])


def _number(count: int, what: str = "minion") -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _few(minions: Iterable[str]) -> str:
    """Some of the names; all of them where they are not many."""
    ordered = sorted(minions, key=_natural)
    shown, more = ordered[:_SHOWN_MINIONS], len(ordered) - _SHOWN_MINIONS
    return ", ".join(shown) + (f" and {more:,} more" if more > 0 else "")


def _natural(minion: str) -> list[tuple[int, str]]:
    """What sorts web2 before web10."""
    return [(int(part or 0), rest) for rest, part in re.findall(r"(\D*)(\d*)", minion)]


def _report(message: str) -> None:
    """Report the progress on the event bus, and to whoever waits at the terminal."""
    log.info("%s", message)
    with contextlib.suppress(Exception):  # no reason to stop a roll-out
        if __opts__.get("output") in (None, "nested"):
            __jid_event__.fire_event({"message": message}, "progress")
        else:  # an output for programs is one document
            tag = salt.utils.event.tagify("progress", base=__tag__)
            __jid_event__.event.fire_event({"message": message}, tag)


# --- arguments ------------------------------------------------------------------------------------


def _refuse_unknown(kwargs: Mapping[str, Any]) -> None:
    unknown = sorted(key for key in kwargs if not key.startswith("__"))
    if unknown:
        raise SaltInvocationError(f"there is no parameter {', '.join(unknown)}: see sys.doc")


def _root(root: Any) -> str:
    if not root:
        raise SaltInvocationError("root is missing: give the directory of the releases")
    if not isinstance(root, str) or not root.startswith("/"):
        raise SaltInvocationError(f"the root must be an absolute path: {root}")
    return root.rstrip("/") or root


def _name(value: Any, what: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):  # as Salt reads a hash of digits
        value = str(value)
    if value is None:
        raise SaltInvocationError(f"{what} is missing: give its name")
    if not isinstance(value, str) or not re.fullmatch(r"[^/\s.][^/\s]*", value):
        raise SaltInvocationError(f"{what} must be a name, without a slash or a space: {value!r}")
    return value


def _whole(value: Any) -> int | None:
    """A whole number of at least 0, in quotes or not; None for anything else."""
    if isinstance(value, bool) or not re.fullmatch(r"\d+", str(value)):
        return None
    return int(value)


def _canary(canary: Any) -> int | list[str]:
    if _whole(canary) is not None:
        return int(canary)
    names = canary.split(",") if isinstance(canary, str) else canary
    if not isinstance(names, (list, tuple)) or not all(isinstance(one, str) for one in names):
        raise SaltInvocationError(f"canary must be a number or a list of minions: {canary!r}")
    return [one.strip() for one in names]


def _batch(batch: Any) -> str:
    """A number or a percentage, as text."""
    text = str(batch).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
    if (match and 0 < float(match[1]) <= 100) or _whole(batch):
        return text
    raise SaltInvocationError(
        f"batch must be a number of at least 1 or a percentage up to 100%: {batch!r}"
    )


def _sls(sls: Any) -> list[str]:
    names = sls.split(",") if isinstance(sls, str) else sls
    if not isinstance(names, (list, tuple)) or not names:
        raise SaltInvocationError(f"sls must be a name or a list of names: {sls!r}")
    if not all(isinstance(one, str) and one.strip() for one in names):
        raise SaltInvocationError(f"sls must be a name or a list of names: {sls!r}")
    return [one.strip() for one in names]


def _pillar(pillar: Any) -> dict[str, Any]:
    if pillar is not None and not isinstance(pillar, Mapping):
        raise SaltInvocationError(f"pillar must be a dictionary: {pillar!r}")
    return dict(pillar or {})


def _pillar_key(key: Any, root: str) -> str:
    if not isinstance(key, str) or not all(key.split(":")):
        raise SaltInvocationError(f"pillar_key must be a path in pillar, such as a:b: {key!r}")
    return key.replace("{app}", root.rpartition("/")[2])


def _environment(value: Any, what: str) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise SaltInvocationError(f"{what} must be the name of an environment: {value!r}")
    return value


def _seconds(pause: Any) -> float:
    if isinstance(pause, bool) or not isinstance(pause, (int, float)) or pause < 0:
        raise SaltInvocationError(f"pause must be a number of seconds: {pause!r}")
    return float(pause)


def _timeout(timeout: Any) -> int | None:
    if timeout is not None and not _whole(timeout):
        raise SaltInvocationError(f"timeout must be a whole number of seconds: {timeout!r}")
    return None if timeout is None else int(timeout)


def _refuse_second(root: str) -> None:
    """Two runs in the same root would each take the other's work for a failure."""
    for job in salt.utils.master.get_running_jobs(__opts__):
        what = _CHANGING.get(str(job.get("fun")))
        if what is None or str(job.get("jid")) >= str(__jid__):
            continue  # of two that begin at once, the earlier one goes on
        given = [*job.get("fun_args", [])]
        named = given.pop() if given and isinstance(given[-1], dict) else {}
        theirs = given[0] if given else named.get("root")
        if not named.get("test") and str(theirs).rstrip("/") == root:
            raise SaltInvocationError(
                f"another {what} in {root} is under way, as job {job['jid']} of "
                f"{job.get('user', 'somebody')}: wait for its end"
            )


@contextlib.contextmanager
def _alone(wanted: _Wanted, names: list[str], doing: str) -> Iterator[Callable[[], None]]:
    """Keep the runs of other masters, whose jobs this one does not see, from these minions.

    Gives what renews their claims, which is to be called before each step.
    """
    claimed = time.monotonic()

    def renew() -> None:
        nonlocal claimed
        if time.monotonic() - claimed > _RENEWAL:
            _claim(wanted, names, doing)
            claimed = time.monotonic()

    if not names:
        yield renew
        return
    holder = str(__opts__["id"])
    try:
        others = _claim(wanted, names, doing)
        if others:
            claim = next(iter(others.values()))
            raise SaltInvocationError(
                f"nothing was changed: {claim['holder']} is at work in {wanted.root} on "
                f"{_few(others)} ({claim['doing']}, since {claim['since']}): wait for its end; if "
                "that was killed, call it again there, or run virtualenv_tools.unclaim on these "
                "minions"
            )
        yield renew
    finally:
        _call(wanted, names, "unclaim", root=wanted.root, holder=holder)


def _drop_claims(wanted: _Wanted, found: Mapping[str, _Standing]) -> None:
    """Take away what a run of this master has left of its claims: no other one is under way."""
    holder = str(__opts__["id"])
    left = [name for name, one in found.items() if one.holder == holder]
    if left:
        _call(wanted, left, "unclaim", root=wanted.root, holder=holder)


def _claim(wanted: _Wanted, minions: list[str], doing: str) -> dict[str, Mapping[str, Any]]:
    """Claim minions, or renew that; the claims of others that are there."""
    keywords = _keywords(root=wanted.root, holder=str(__opts__["id"]), doing=doing)
    try:
        answers = _ask(minions, "list", f"{_TOOLS}.claim", [keywords], wanted.timeout)
    except SaltException as error:  # whatever keeps it from that shows in the next step
        log.error("The minions are not claimed: %s", error)
        return {}
    found = {name: (one or {}).get("ret") for name, one in answers.items()}
    return {
        name: one
        for name, one in found.items()
        if isinstance(one, Mapping) and one.get("claimed") is False
    }


# --- asking ---------------------------------------------------------------------------------------


def _ask(
    tgt: str | list[str],
    tgt_type: str,
    functions: str | list[str],
    arguments: list[Any],
    timeout: int | None,
) -> dict[str, Any]:
    """One job; the answer of each minion, `None` of one that gives none."""
    answers: dict[str, Any] = {}
    with _client() as client:
        for part in client.cmd_iter(
            tgt, functions, arguments, timeout=timeout, tgt_type=tgt_type, yield_pub_data=True
        ):
            if not part:
                continue
            if "error" in part:
                raise SaltInvocationError(f"the master refuses the job: {part['error']}")
            if "jid" in part and "minions" in part:
                answers.update(dict.fromkeys(part["minions"]))
                continue
            for minion, answer in part.items():
                answers[minion] = None if answer.get("failed") else answer
    if not answers:
        raise SaltInvocationError(f"no minion matches the target {tgt}")
    return answers


@contextlib.contextmanager
def _client() -> Iterator[Any]:
    """Salt's client, without the line that it prints where a target matches nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        client = salt.client.get_local_client(__opts__["conf_file"])
        try:
            yield client
        finally:
            client.destroy()


def _keywords(**arguments: Any) -> dict[str, Any]:
    """Arguments as a job carries them: those in a list would be parsed once more."""
    return {"__kwarg__": True, **arguments}


class _Standing(NamedTuple):
    """Which release a minion is on.

    Attributes:
        problem: why its release is unknown; a part of a sentence.
        answers: whether the minion does.
        release: the active one.
        healthy: whether that was found healthy.
        since: when it became active.
        how: by which event.
        job: Salt's job id of that.
        interpreter: the shared interpreter that it runs on, by its directory.
        bad: why a release is marked bad, by name.
        left: the release that it has been rolled back from, by whatever means.
        schemas: what is recorded of the schemas, by name.
        holder: whose claim there is: the master with a run under way, or one that was killed.
    """

    problem: str | None = None
    answers: bool = True
    release: str | None = None
    healthy: bool = False
    since: str | None = None
    how: str | None = None
    job: str | None = None
    interpreter: str | None = None
    bad: Mapping[str, str] = {}
    left: str | None = None
    schemas: Mapping[str, Mapping[str, Any]] = {}
    holder: str | None = None


def _standings(
    root: str, link: str, tgt: str | list[str], tgt_type: str, timeout: int | None
) -> dict[str, _Standing]:
    """The state of each minion, in their natural order."""
    functions = [f"{_TOOLS}.{name}" for name in _ASKED]
    arguments = [
        [_keywords(link=f"{root}/{link}")],
        [_keywords(root=root)],
        [_keywords(root=root, limit=_EVENTS, full=True)],
        [_keywords(root=root)],
        [_keywords(root=root)],
    ]
    answers = _ask(tgt, tgt_type, functions, arguments, timeout)
    return {
        minion: _standing(answers[minion], root, link) for minion in sorted(answers, key=_natural)
    }


def _standing(answer: Any, root: str, link: str) -> _Standing:
    if answer is None:
        return _Standing(_SILENT, answers=False)
    returned = answer.get("ret")
    if not isinstance(returned, Mapping):
        return _Standing(f"cannot be asked: {_clause(returned)}")
    parts: list[Any] = [returned.get(f"{_TOOLS}.{name}") for name in _ASKED]
    for part in parts:
        if not isinstance(part, (Mapping, list)):
            return _Standing(_problem(part))
    active, known, events, schemas, claim = parts
    holder = claim.get("holder")
    if not known:
        return _Standing(f"has no release in {root}", holder=holder)
    release = active["release"]
    bad = {name: str(one["bad"]) for name, one in known.items() if one.get("bad") is not None}
    if release is None:
        problem = f"has releases in {root}, and none of them is active"
        return _Standing(problem, bad=bad, schemas=schemas, holder=holder)
    event = _switch(events, release, link)
    return _Standing(
        release=release,
        healthy=bool(active["proven"]),
        since=event.get("time"),
        how=event.get("event", "").replace("_", " ") or None,
        job=event.get("job"),
        interpreter=known.get(release, {}).get("interpreter"),
        bad=bad,
        left=_left_release(event, release, list(known), bad),
        schemas=schemas,
        holder=holder,
    )


def _switch(events: list[dict[str, Any]], release: str, link: str) -> dict[str, Any]:
    """The event by which a release became the active one."""
    for event in reversed(events):
        of_link = event.get("link", "current") == link
        if of_link and event["event"] in ("activated", "rolled_back"):
            return event if event["release"] == release else {}
    return {}


def _left_release(
    event: Mapping[str, Any], release: str, known: list[str], bad: Mapping[str, str]
) -> str | None:
    """What a minion has been rolled back from to its release, by the last event of its link.

    Args:
        event: that event.
        release: the active release.
        known: all releases, the one that was published last first.
        bad: those that are marked bad.
    """
    previous = event.get("previous")
    if previous is None or event.get("event") == "rolled_back":
        return previous
    # A roll-out that fails activates the previous release, and marks its own bad.
    newer = known[: known.index(release)] if release in known else []
    return previous if previous in bad and previous in newer else None


def _problem(said: Any) -> str:
    """Why a function has failed, from the traceback that Salt returns where several are called."""
    lines = [line for line in str(said or "").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else ""
    kind, _, text = last.partition(": ")
    name = kind.rpartition(".")[2]
    if not last or name in ("TypeError", "KeyError") or "is not available" in last:
        return "has no extension or an older one: run saltutil.sync_all there"
    named = re.fullmatch(r"[\w.]+", kind)
    return f"cannot be asked: {_clause(text if named else last)}"


# --- the fleet ------------------------------------------------------------------------------------


def _overview(root: str, found: dict[str, _Standing], wanted: str | None) -> dict[str, Any]:
    releases: dict[str, list[str]] = {}
    bad: dict[str, dict[str, list[str]]] = {}
    for minion, one in found.items():
        if one.release is not None:
            releases.setdefault(one.release, []).append(minion)
        for release, reason in one.bad.items():
            bad.setdefault(release, {}).setdefault(reason, []).append(minion)
    most = wanted or _most(found)
    stragglers = {
        minion: _sentence(_lagging(one))
        for minion, one in found.items()
        if one.release is None or one.release != most or one.release in one.bad
    }
    return {
        "root": root,
        "comment": _summary(found, most, stragglers) + _misfit_sentence(found),
        "release": most,
        "releases": releases,
        "stragglers": stragglers,
        "bad": bad,
        "schemas": _shared_schemas(found),
    }


def _most(found: dict[str, _Standing]) -> str | None:
    """The release that most minions are on; of two with as many, the one that came later."""
    count = Counter(one.release for one in found.values() if one.release is not None)
    latest: dict[str, str] = {}
    for one in found.values():
        if one.release is not None:
            latest[one.release] = max(latest.get(one.release, ""), one.since or "")
    return max(count, key=lambda name: (count[name], latest[name], name), default=None)


def _lagging(one: _Standing) -> str:
    if one.problem is not None:
        return one.problem
    since = f" since {one.since}" if one.since else ""
    reason = one.bad.get(str(one.release))
    bad = "" if reason is None else f", and that is marked bad there: {reason}"
    return f"is on {one.release}{since}{bad}"


def _summary(found: dict[str, _Standing], most: str | None, stragglers: dict[str, str]) -> str:
    silent = sum(not one.answers for one in found.values())
    last = f"; {silent:,} of them {'does' if silent == 1 else 'do'} not answer" if silent else ""
    if most is None:
        return f"None of {_number(len(found))} is on a release{last}."
    on = sum(one.release == most for one in found.values())
    if on == len(found):
        return f"All {on:,} minions are on {most}." if on > 1 else f"The minion is on {most}."
    return f"{on:,} of {_number(len(found))} {'is' if on == 1 else 'are'} on {most}{last}."


def _shared_schemas(found: Mapping[str, _Standing]) -> list[dict[str, Any]]:
    """The schemas that one minion migrates for all, as that one has recorded them."""
    pairs = {
        (schema, str(one["host"]))
        for standing in found.values()
        for schema, one in standing.schemas.items()
        if one["host"]
    }
    return [_shared_schema(schema, host, found) for schema, host in sorted(pairs)]


def _shared_schema(schema: str, host: str, found: Mapping[str, _Standing]) -> dict[str, Any]:
    own = found[host].schemas.get(schema, {}) if host in found else {}
    own = own if own.get("host") == host else {}
    users = Counter(
        str(one.schemas[schema]["host"]) for one in found.values() if schema in one.schemas
    )
    misfits = {}
    for minion, one in found.items():
        mine = one.schemas.get(schema)
        if mine is None or not own:
            continue
        if mine["host"] != host:
            # Of two hosts, the one that fewer minions have is wrong.
            if mine["place"] == own["place"] and users[str(mine["host"])] <= users[host]:
                misfits[minion] = f"has {mine['host']} for the host of the same database"
        elif one.release is not None and one.release not in own["fits"]:
            misfits[minion] = f"is on {one.release}, and the schema is not known to fit that"
        elif mine["place"] not in ("", own["place"]):
            misfits[minion] = f"uses another database: {mine['place']}"
    return {
        "schema": schema,
        "host": host,
        "place": own.get("place"),
        "version": own.get("version"),
        "since": own.get("time"),
        "release": own.get("by"),
        "job": own.get("job"),
        "misfits": {minion: _sentence(why) for minion, why in misfits.items()},
    }


def _misfit_sentence(found: Mapping[str, _Standing]) -> str:
    misfits = {minion for one in _shared_schemas(found) for minion in one["misfits"]}
    return f" The schema does not fit {_few(misfits)}." if misfits else ""


def _details(found: dict[str, _Standing]) -> dict[str, dict[str, Any]]:
    users = _users({one.job for one in found.values() if one.job})
    return {
        minion: {
            "release": one.release,
            "since": one.since,
            "how": one.how,
            "job": one.job,
            "user": users.get(one.job or ""),
            "healthy": one.healthy,
            "interpreter": one.interpreter,
            "problem": None if one.problem is None else _sentence(one.problem),
        }
        for minion, one in found.items()
    }


def _users(jobs: Iterable[str]) -> dict[str, str]:
    """Who started each of these jobs, as far as the job cache knows."""
    cache = __opts__.get("ext_job_cache") or __opts__.get("master_job_cache") or "local_cache"
    users = {}
    try:
        load = salt.loader.returners(__opts__, {})[f"{cache}.get_load"]
        for job in jobs:
            with contextlib.suppress(Exception):  # a job that the cache has forgotten
                users[job] = str(load(job)["user"])
    except Exception as error:  # a cache that cannot be asked
        log.warning("The job cache %s cannot be asked: %s", cache, error)
    return users


# --- the plan of a roll-out -----------------------------------------------------------------------


class _Wanted(NamedTuple):
    """What is to be rolled out, and how; without an environment, the minion's default is used."""

    root: str
    release: str
    canary: int | list[str]
    batch: str
    sls: list[str]
    pillar: dict[str, Any]
    pillar_key: str
    pause: float
    link: str
    saltenv: str | None
    pillarenv: str | None
    timeout: int | None

    @property
    def app(self) -> str | None:
        """The app of the formula that this is about; None where something else is rolled out."""
        match = _APP_KEY.fullmatch(self.pillar_key)
        return match[1] if match and self.formula else None

    @property
    def formula(self) -> str | None:
        """What the formula is called here, such as `formula.releases`."""
        return next((found[0] for found in map(_FORMULA.match, self.sls) if found), None)

    def override(self, release: str) -> dict[str, Any]:
        """The pillar of a run that switches to a release."""
        override: Any = release
        for key in reversed(self.pillar_key.split(":")):
            override = {key: override}
        if self.app is not None:
            override["releases"]["run"] = {"app": self.app}
        return dict(salt.utils.dictupdate.merge_recurse(self.pillar, override))

    def back(self, leaving: str) -> dict[str, Any]:
        """The pillar of a run of the formula's `rollback`, to the release."""
        run = {"app": self.app, "to": self.release, "from": leaving}
        override = {"releases": {"run": run}}
        return dict(salt.utils.dictupdate.merge_recurse(self.pillar, override))


class _Step(NamedTuple):
    """Minions that are switched at once."""

    name: str
    minions: list[str]


class _Plan(NamedTuple):
    """What a roll-out does, as decided before it begins.

    Attributes:
        steps: in their order.
        before: the release that each minion of the steps is on.
        skipped: the minions that have the release already, and were found healthy on it.
        missing: the minions that do not answer.
        size: how many minions a batch has.
    """

    steps: list[_Step]
    before: dict[str, str | None]
    skipped: list[str]
    missing: list[str]
    size: int

    def line(self, step: _Step, release: str) -> str:
        """A step, with what its minions are on; said once for those that follow each other."""

        def standing(minion: str) -> str:
            before = self.before[minion]
            return (
                "on it, but not found healthy" if before == release else f"from {before or 'none'}"
            )

        groups = itertools.groupby(step.minions, standing)
        return f"{step.name}: " + ", ".join(f"{', '.join(some)} ({on})" for on, some in groups)


def _plan(wanted: _Wanted, found: Mapping[str, _Standing]) -> _Plan:
    """The plan for minions in this state; raises what forbids the roll-out."""
    there = {name: one for name, one in found.items() if one.answers}
    if not there:
        raise SaltInvocationError(
            f"there is no minion to roll out to: none of {_number(len(found))} answers"
        )
    _require_usable(there)
    # One that was not found healthy is tried again.
    skipped = [name for name, one in there.items() if one.release == wanted.release and one.healthy]
    before = {name: there[name].release for name in _without(there, skipped)}
    _require_not_bad(wanted, {name: there[name] for name in before}, skipped)
    # All that answer are counted, so a second call goes on with the same steps.
    size = _batch_size(wanted.batch, len(there))
    steps = [
        _Step(name, [one for one in minions if one in before])
        for name, minions in _groups(wanted.canary, list(there), size)
    ]
    return _Plan(
        steps=[step for step in steps if step.minions],
        before=before,
        skipped=skipped,
        missing=[name for name, one in found.items() if not one.answers],
        size=size,
    )


def _require_usable(there: Mapping[str, _Standing]) -> None:
    """Refuse a roll-out to a minion that cannot report its releases; it may have none yet."""
    for name, one in there.items():
        if one.problem is not None and not _is_empty(one):
            raise SaltInvocationError(f"nothing was rolled out: {name} {one.problem}")


def _require_not_bad(
    wanted: _Wanted, minions: Mapping[str, _Standing], skipped: Sequence[str]
) -> None:
    """Refuse a release that is marked bad on one of the minions, if others have it or not."""
    marked = {
        name: one.bad[wanted.release] for name, one in minions.items() if wanted.release in one.bad
    }
    if marked:
        reason = _clause(next(iter(marked.values())))
        more = f"; {_still_on_it(skipped)}" if skipped else ""
        raise SaltInvocationError(
            f"nothing was rolled out: {wanted.release} is marked bad on {_few(marked)} "
            f"({reason}); if it is good, run virtualenv_tools.unmark_bad "
            f"{wanted.root}/{wanted.release} there first{more}"
        )


def _still_on_it(minions: Sequence[str]) -> str:
    """What had a release before a roll-out of it fails, and how it is rolled back."""
    are = "is" if len(minions) == 1 else "are"
    return f"{_few(minions)} had it before, and {are} still on it: releases.rollback rolls back all"


def _groups(
    canary: int | list[str], minions: list[str], size: int
) -> Iterator[tuple[str, list[str]]]:
    """All minions, in the canary and the batches."""
    if isinstance(canary, list):
        unknown = [name for name in canary if name not in minions]
        if unknown:
            raise SaltInvocationError(
                "nothing was rolled out: the canary is not among the minions that answer: "
                f"{_few(unknown)}"
            )
        first = list(dict.fromkeys(canary))
    else:
        first = minions[:canary]
    yield "canary", first
    rest = _without(minions, first)
    for number, start in enumerate(range(0, len(rest), size), 1):
        yield f"batch {number}", rest[start : start + size]


def _without(minions: Iterable[str], some: Iterable[str]) -> list[str]:
    """The minions but for some, in their order."""
    left_out = set(some)
    return [name for name in minions if name not in left_out]


def _batch_size(batch: str, count: int) -> int:
    """How many minions a batch has."""
    if batch.endswith("%"):
        return max(1, math.floor(count * float(batch[:-1]) / 100))
    return int(batch)


# --- rolling out ----------------------------------------------------------------------------------


class _Rollout:
    """What carries out a plan, and what has come of it.

    Attributes:
        switched: the minions that are on the release by this run.
        failed: why a minion has failed.
        back: the release that a minion is back on.
        stuck: why a minion could not be rolled back.
        untouched: the minions that were not reached before the failure.
        schema: what became of the schema that a host migrates for all; a sentence.
        changes: what the release changes, in a line for each release that it replaces.
    """

    def __init__(self, wanted: _Wanted, plan: _Plan, host: str | None) -> None:
        self.wanted = wanted
        self.plan = plan
        self.host = host
        self.schema: str | None = None
        self.changes: dict[str, str] = {}
        self.switched: list[str] = []
        self.failed: dict[str, str] = {}
        self.back: dict[str, str] = {}
        self.stuck: dict[str, str] = {}
        self.untouched: list[str] = []

    def run(self, renew: Callable[[], None]) -> bool:
        """Do all steps, or roll back after the first one that fails; whether none did."""
        steps = self.plan.steps
        for number, step in enumerate(steps):
            if number and self.wanted.pause:
                _report(f"waiting for {self.wanted.pause:g} seconds")
                for begun in range(0, math.ceil(self.wanted.pause), _RENEWAL):
                    time.sleep(min(self.wanted.pause - begun, _RENEWAL))
                    renew()
            renew()
            _report(f"{step.name}, {number + 1} of {len(steps)}: {_few(step.minions)}")
            later = [one for step in steps[number + 1 :] for one in step.minions]
            self._prepare(step.minions, is_first=not number)
            if self.failed:
                # What does not answer may do anything later.
                looked = _look(self.wanted, list(self.failed))
                after = {name: one for name, one in looked.items() if not one.answers}
                self.untouched = [*_without(step.minions, after), *later]
            else:
                after = self._switch(step.minions)
                self.compare(step.minions)
                self.untouched = later if self.failed else []
            if self.failed:
                self._roll_back(after)
                self._restore_schema()
                return False
        return True

    def facts(self) -> dict[str, Any]:
        """The plan and what has come of it, as the runner's answer has them."""
        plan = self.plan
        return {
            "steps": [{"step": step.name, "minions": step.minions} for step in plan.steps],
            "before": plan.before,
            "changes": self._changes_by_line(),
            "switched": self.switched,
            "skipped": plan.skipped,
            "failed": {name: _sentence(why) for name, why in self.failed.items()},
            "back": self.back,
            "stuck": {name: _sentence(why) for name, why in self.stuck.items()},
            "untouched": self.untouched,
            "missing": plan.missing,
            "host": self.host,
            "schema": self.schema,
        }

    def compare(self, minions: list[str], facts: Mapping[str, _Facts] = {}) -> None:
        """Report what the release changes; of those that replace the same one, one is asked.

        Args:
            minions: where it is deployed, or will be.
            facts: where it comes from, for minions that have not deployed it.
        """
        first: dict[str, str] = {}
        for name in minions:
            before = self.plan.before.get(name)
            if before is not None and before != self.wanted.release:
                first.setdefault(before, name)
        for before, name in first.items():
            if before in self.changes:
                continue
            places = [f"{self.wanted.root}/{self.wanted.release}"]
            if name in facts and facts[name].source:
                places.append(str(facts[name].source))
            line = _difference(self.wanted, name, before, places)
            if line is not None:
                self.changes[before] = line
                _report(f"what changes since {before}: {line}")

    def _changes_by_line(self) -> dict[str, list[str]]:
        """The minions, by what changes there."""
        found: dict[str, list[str]] = {}
        for name, before in self.plan.before.items():
            if before in self.changes:
                found.setdefault(self.changes[before], []).append(name)
        return found

    def _prepare(self, minions: list[str], is_first: bool) -> None:
        """Have the release unpacked, and the schema migrated, before anything is switched."""
        wanted, host = self.wanted, self.host
        if wanted.formula is None or wanted.app is None or host is None:
            return
        names = list(dict.fromkeys([*minions, host])) if is_first else minions
        _report(f"unpacking on {_few(names)}")
        unpack = [f"{wanted.formula}.bootstrap", f"{wanted.formula}.unpack"]
        self.failed = _apply(wanted, names, wanted.release, unpack)
        self.compare(_without(minions, self.failed))
        if is_first and not self.failed:
            _report(f"migrating the schema on {host}")
            self.failed = _apply(wanted, [host], wanted.release, [f"{wanted.formula}.migrate"])
        if self.failed:
            _report(f"failed on {_few(self.failed)}, before anything was switched there")

    def _restore_schema(self) -> None:
        """Have the host migrate the schema down, where all minions are on what they had before."""
        plan, host = self.plan, self.host
        if host is None:
            return
        still = [*self.stuck, *plan.missing, *plan.skipped]
        if still:
            self.schema = f"The schema is left as it is, as {_few(still)} may need it."
        else:
            self.schema = _migrate_down(self.wanted, host, list(plan.before))

    def _switch(self, minions: list[str]) -> dict[str, _Standing]:
        """Do a step; the state of its minions after that."""
        wanted = self.wanted
        self.failed = _apply(wanted, minions, wanted.release)
        after = _look(wanted, minions)
        for name, one in after.items():
            if one.release != wanted.release and name not in self.failed:
                self.failed[name] = (
                    f"{one.problem or f'is on {one.release}'} after {', '.join(wanted.sls)} was "
                    f"applied: see that it takes the release from pillar, at {wanted.pillar_key}, "
                    f"and its root is {wanted.root}"
                )
        self.switched += [name for name in minions if after[name].release == wanted.release]
        _report(f"failed on {_few(self.failed)}" if self.failed else f"done on {_few(minions)}")
        return after

    def _roll_back(self, after: Mapping[str, _Standing]) -> None:
        """Switch the minions of this run to their previous releases."""
        before, release = self.plan.before, self.wanted.release
        for name, one in after.items():
            if not one.answers:
                self.stuck[name] = f"{_SILENT}: see what it is on when it is back"
            elif one.release != release and one.release is not None:
                self.back[name] = one.release
        # What had the release already, and was not found healthy, was not switched.
        previous = {
            name: str(before[name]) for name in self.switched if before[name] not in (None, release)
        }
        self.switched = [name for name in self.switched if name not in previous]
        for name in self.switched:
            if before[name] is None:
                self.stuck[name] = f"stays on {release}, as it had no previous release"
        names = list(previous)
        for start in range(0, len(names), self.plan.size):
            batch = names[start : start + self.plan.size]
            self._return({name: previous[name] for name in batch})

    def _return(self, previous: Mapping[str, str]) -> None:
        """Switch minions to their previous releases, by the SLS or else without it."""
        wanted, minions = self.wanted, list(previous)
        _report(f"rolling back {_few(minions)}")
        name, why = next(iter(self.failed.items()))
        reason = f"the roll-out has failed on {name}: {_first(why)}"
        path = f"{wanted.root}/{wanted.release}"
        _call(wanted, minions, "mark_bad", path=path, reason=reason)
        by_release: dict[str, list[str]] = {}
        for one, release in previous.items():
            by_release.setdefault(release, []).append(one)
        failed: dict[str, str] = {}
        for release, members in by_release.items():
            failed.update(_apply(wanted, members, release))
        now = _look(wanted, minions)
        for release, members in by_release.items():
            still = [one for one in members if now[one].release == wanted.release]
            if still:  # the SLS has failed before it came to that
                options = {"to": release, "link": wanted.link, "leaving": wanted.release}
                _call(wanted, still, "rollback", root=wanted.root, reason=reason, **options)
                now.update(_look(wanted, still))
        for one in minions:
            self._returned(one, now[one], failed.get(one))

    def _returned(self, minion: str, now: _Standing, failure: str | None) -> None:
        """Keep what has come of a minion that should be on its previous release."""
        if now.release is None:
            self.stuck[minion] = str(now.problem)
        elif now.release == self.wanted.release:
            self.stuck[minion] = f"stays on it: {failure or 'unknown why'}"
            self.switched.append(minion)
        else:
            self.back[minion] = now.release
            if failure is not None:
                self.stuck[minion] = (
                    f"is on {now.release}, and not all of its states succeed: {failure}"
                )

    def comment(self, result: bool | None) -> str:
        """What happened; `None` is the result of a run that did nothing but plan."""
        return " ".join(self._sentences(result))

    def _sentences(self, result: bool | None) -> Iterator[str]:
        plan, release = self.plan, self.wanted.release
        skipped = _number(len(plan.skipped))
        if result is False:
            yield from self._failure_sentences()
            return
        if result is None:
            steps = "; ".join(plan.line(step, release) for step in plan.steps)
            first = f"; {self.host} migrates the schema first" if self.host else ""
            yield f"{release} would be rolled out, {steps}{first}."
            for line, minions in self._changes_by_line().items():
                yield f"On {_few(minions)}: {line}."
        elif not plan.steps:
            yield f"{release} is on {skipped} already; nothing was to be done."
        else:
            had = f"; {skipped} had it already" if plan.skipped else ""
            yield f"{release} was rolled out to {_number(len(self.switched))}{had}."
        if plan.missing:
            do = "does" if len(plan.missing) == 1 else "do"
            names = _few(plan.missing)
            yield f"{_number(len(plan.missing))} {do} not answer, and {do} not get it: {names}."

    def _failure_sentences(self) -> Iterator[str]:
        name, why = next(iter(self.failed.items()))
        more = len(self.failed) - 1
        others = f" and {_number(more, 'more minion')}" if more else ""
        yield f"The roll-out of {self.wanted.release} has failed on {name}{others}: {_first(why)}."
        if self.back:
            yield f"Back on the previous release: {_few(self.back)}."
        if self.stuck:
            yield f"Look after {_few(self.stuck)}."
        if self.plan.skipped:
            yield f"{_still_on_it(self.plan.skipped)}."
        if self.schema:
            yield self.schema


class _Facts(NamedTuple):
    """What the formula knows of an app on a minion.

    Attributes:
        host: who migrates its schema for all.
        source: where its release comes from, where that is one place.
    """

    host: str | None
    source: str | None


def _require_app(wanted: _Wanted, minions: list[str]) -> dict[str, _Facts] | None:
    """Have the formula verify the pillar of each minion, as `checked` does it.

    Returns:
        What it knows of the app on each of them; None where there is no formula to be asked.
    """
    if wanted.app is None or not minions:
        return None
    sls = [f"{wanted.formula}.checked", f"{wanted.formula}.facts"]
    answers = _states(wanted, minions, wanted.override(wanted.release), sls)
    # It has a state only where there is something to report; for Salt, none at all is a failure.
    found = {name: one for name, one in answers.items() if one is None or one.get("ret") != {}}
    failed = {name: why for name, one in found.items() if (why := _failure(one)) is not None}
    if failed:
        why = next(iter(failed.values()))
        same = [name for name, one in failed.items() if one == why]
        raise SaltInvocationError(
            f"nothing was rolled out: {_few(same)} cannot take the release from "
            f"{wanted.pillar_key}: {why}"
        )
    return {name: _facts(one, wanted.app) for name, one in answers.items()}


def _facts(answer: Any, app: str) -> _Facts:
    """What the formula's `facts` reports."""
    named = {one.get("__id__"): str(one.get("name")) for one in answer["ret"].values()}
    return _Facts(
        host=named.get(f"{app} is migrated by its host"),
        source=named.get(f"{app} is deployed from its source"),
    )


def _difference(wanted: _Wanted, minion: str, old: str, places: Sequence[str]) -> str | None:
    """How the first of some builds that can be read differs from a release, in one line."""
    environment = {} if wanted.saltenv is None else {"saltenv": wanted.saltenv}
    for place in places:
        keywords = _keywords(old=f"{wanted.root}/{old}", new=place, **environment)
        try:
            answers = _ask([minion], "list", f"{_TOOLS}.diff", [keywords], wanted.timeout)
        except SaltException as error:
            log.info("%s is not compared: %s", place, error)
            continue
        returned = (answers.get(minion) or {}).get("ret")
        if isinstance(returned, Mapping) and returned.get("summary"):
            return str(returned["summary"])
        log.info("%s is not compared: %s", place, returned)
    return None


def _require_host(
    facts: Mapping[str, _Facts] | None, plan: _Plan, found: Mapping[str, _Standing]
) -> str | None:
    """Who migrates the schema for all; None where each minion does that for itself."""
    if facts is None:  # no formula, or nothing to do
        hosts = _recorded_hosts({name: found[name] for name in plan.before})
    else:
        hosts = {}
        for name, one in facts.items():
            hosts.setdefault(one.host or "", []).append(name)
    if len(hosts) > 1:
        each = "; ".join(
            f"{host or 'none'} on {_few(minions)}" for host, minions in sorted(hosts.items())
        )
        raise SaltInvocationError(
            f"nothing was rolled out: not all minions have the same host for their schema: {each}; "
            "set the same one in the pillar of all that use a database, and roll out to these alone"
        )
    host = next(iter(hosts), "")
    if host and host not in found:
        raise SaltInvocationError(
            f"nothing was rolled out: {host}, which migrates the schema for all, is not among the "
            "minions of the target: see whether that is a minion's ID, and add it to the target"
        )
    if host and not found[host].answers:
        raise SaltInvocationError(
            f"nothing was rolled out: {host}, which migrates the schema for all, does not answer: "
            "see whether that minion is running"
        )
    return host or None


def _recorded_hosts(found: Mapping[str, _Standing]) -> dict[str, list[str]]:
    """Who migrates a schema for all, with the minions that have recorded it."""
    hosts: dict[str, list[str]] = {}
    for name, one in found.items():
        for host in {str(schema["host"]) for schema in one.schemas.values() if schema["host"]}:
            hosts.setdefault(host, []).append(name)
    return hosts


# --- rolling back ---------------------------------------------------------------------------------


def _rollback_releases(
    wanted: _Wanted, leaving: str | None, found: Mapping[str, _Standing]
) -> tuple[_Wanted, str | None]:
    """What is rolled back to, and the release that is left: None for whatever a minion is on.

    What was rolled back already counts for what it has left. So a call after an interruption finds
    the same releases, and one after the end finds nothing to do.
    """
    there = {name: one for name, one in found.items() if one.release is not None}
    if not there:
        raise SaltInvocationError(
            f"nothing was rolled back: none of {_number(len(found))} is on a release"
        )
    if wanted.release:
        return wanted, leaving
    # One that a roll-out has not reached is on what the others are back on.
    reached = {one.release for one in there.values() if one.left}
    left = {
        one.left or one.release for one in there.values() if one.left or one.release not in reached
    }
    votes = sorted(map(str, left))
    if leaving is None and len(votes) > 1:
        raise SaltInvocationError(
            f"nothing was rolled back: the minions are on several releases, {', '.join(votes)}; "
            "give the one to leave as `leaving`"
        )
    leaving = leaving or votes[0]
    back = {one.release for one in there.values() if one.left == leaving}
    on = [name for name, one in there.items() if one.release == leaving]
    if not back and on:
        back = _previous(wanted, leaving, on)
    if len(back) != 1:
        choice = ", ".join(sorted(map(str, back))) or "none is known"
        raise SaltInvocationError(
            f"nothing was rolled back: it is not clear what to roll back to from {leaving} "
            f"({choice}); give the release as `to`"
        )
    return wanted._replace(release=str(back.pop())), leaving


def _previous(wanted: _Wanted, leaving: str, minions: list[str]) -> set[str | None]:
    """What each of these minions would roll back to."""
    options = {"root": wanted.root, "link": wanted.link, "leaving": leaving, "test": True}
    answers = _ask(minions, "list", f"{_TOOLS}.rollback", [_keywords(**options)], wanted.timeout)
    found: set[str | None] = set()
    for name in minions:
        returned = (answers.get(name) or {}).get("ret", _SILENT)
        if not isinstance(returned, Mapping):
            raise SaltInvocationError(f"nothing was rolled back: {name}: {_clause(returned)}")
        found.add(returned["release"])
    return found


class _Rollback:
    """A rollback of all minions, and what has come of it.

    Attributes:
        steps: the batches.
        before: what each minion of them was on.
        back: the release that a minion is back on.
        failed: why a minion is not, or not all of its states succeed.
        elsewhere: the minions on another release, which stay there.
        missing: those that do not answer.
        host: who migrates the schema for all.
        schema: what became of that; a sentence.
    """

    def __init__(
        self, wanted: _Wanted, leaving: str | None, reason: str, found: Mapping[str, _Standing]
    ) -> None:
        self.wanted = wanted
        self.leaving = leaving
        self.reason = reason
        concerned = (wanted.release, leaving)
        there = {name: one.release for name, one in found.items() if one.release is not None}
        self.before = {
            name: release
            for name, release in there.items()
            if leaving is None or release in concerned
        }
        self.elsewhere = {name: one for name, one in there.items() if name not in self.before}
        self.missing = [name for name, one in found.items() if not one.answers]
        self.hosts = sorted(_recorded_hosts(found))
        size = _batch_size(wanted.batch, len(there))
        self.steps = [
            _Step(name, minions) for name, minions in _groups(0, list(self.before), size) if minions
        ]
        self.back: dict[str, str] = {}
        self.failed: dict[str, str] = {
            name: str(one.problem)
            for name, one in found.items()
            if one.answers and not _is_clear(one)
        }
        self.schema: str | None = None

    def run(self, renew: Callable[[], None]) -> bool:
        """Do all batches, whatever becomes of one, then the schema; whether all went well."""
        for step in self.steps:
            renew()
            _report(
                f"{step.name} of {len(self.steps)}: rolling back to {self.wanted.release}: "
                f"{_few(step.minions)}"
            )
            self._return(step.minions)
        self._restore_schema()
        return not self.failed and not self.missing

    def facts(self) -> dict[str, Any]:
        """What the runner's answer has of it."""
        return {
            "to": self.wanted.release,
            "leaving": self.leaving,
            "steps": [{"step": step.name, "minions": step.minions} for step in self.steps],
            "before": self.before,
            "back": self.back,
            "failed": {name: _sentence(why) for name, why in self.failed.items()},
            "elsewhere": self.elsewhere,
            "missing": self.missing,
            "host": ", ".join(self.hosts) or None,
            "schema": self.schema,
        }

    def _return(self, minions: list[str]) -> None:
        """Roll a batch back, by the formula or else without it."""
        by_release: dict[str, list[str]] = {}
        for name in minions:
            by_release.setdefault(self.before[name], []).append(name)
        failed: dict[str, str] = {}
        for release, names in by_release.items():
            failed.update(self._switch(names, release))
        now = _look(self.wanted, minions)
        for name, one in now.items():
            if one.release == self.wanted.release:
                self.back[name] = one.release
                if name in failed:
                    words = f"is on {one.release}, and not all of its states succeed"
                    self.failed[name] = f"{words}: {failed[name]}"
            else:
                self.failed[name] = failed.get(name) or one.problem or f"is on {one.release}"

    def _switch(self, minions: list[str], release: str) -> dict[str, str]:
        """Roll minions back that are on a release; why their states have failed."""
        wanted = self.wanted
        leaving = release if release != wanted.release else self.leaving or release
        options = {
            "root": wanted.root,
            "to": wanted.release,
            "link": wanted.link,
            "leaving": leaving,
            "reason": self.reason,
        }
        if release != wanted.release:
            _call(wanted, minions, "rollback", **options)
        if wanted.formula is None or wanted.app is None:
            return _apply(wanted, minions, wanted.release)
        # It finds the release switched, has its programs run on it, and checks them.
        return _applied(wanted, minions, wanted.back(leaving), [f"{wanted.formula}.rollback"])

    def _restore_schema(self) -> None:
        """Have the host migrate the schema down, where all minions are back."""
        if not self.hosts:
            return
        (host, *others) = self.hosts
        still = [*self.failed, *self.missing]
        why = f"{_few(still)} may need it"
        if others:
            still, why = self.hosts, f"not all minions have the same host: {', '.join(self.hosts)}"
        if still:
            self.schema = f"The schema is left as it is, as {why}."
        else:
            self.schema = _migrate_down(self.wanted, host, [*self.before, *self.elsewhere])

    def comment(self, result: bool | None) -> str:
        """What happened; `None` is the result of a run that did nothing but plan."""
        return " ".join(self._sentences(result))

    def _sentences(self, result: bool | None) -> Iterator[str]:
        to = self.wanted.release
        moved = [name for name, release in self.before.items() if release != to]
        if result is None:
            steps = "; ".join(f"{step.name}: {', '.join(step.minions)}" for step in self.steps)
            last = f"; {', '.join(self.hosts)} migrates the schema last" if self.hosts else ""
            yield f"{_number(len(moved))} would be rolled back to {to}, {steps}{last}."
        elif not moved:
            yield f"{_number(len(self.before))} had been rolled back to {to} already."
            if not self.schema:
                yield "To go further back, give the release as `to`."
        else:
            yield f"{_number(len(self.back))} of {len(self.before)} back on {to}."
        if self.failed:
            name, why = next(iter(self.failed.items()))
            more = f" Look after {_few(self.failed)}." if len(self.failed) > 1 else ""
            yield f"The rollback has failed on {name}: {_first(why)}.{more}"
        if self.missing:
            do = "does" if len(self.missing) == 1 else "do"
            it = "it does" if len(self.missing) == 1 else "they do"
            yield f"{_few(self.missing)} {do} not answer: call this again when {it}."
        if self.elsewhere:
            yield f"On another release, and left there: {_few(self.elsewhere)}."
        if self.schema:
            yield self.schema


def _is_empty(one: _Standing) -> bool:
    """Whether a minion has just no release."""
    return str(one.problem).startswith(("has no release", "has releases"))


def _migrate_down(wanted: _Wanted, host: str, minions: Sequence[str]) -> str | None:
    """Have the host migrate the schema down, unless any minion may need it; what became of it.

    All minions of the master are asked: others may use the same database.
    """
    left = "The schema is left as it is"
    try:
        found = _standings(wanted.root, wanted.link, "*", "glob", wanted.timeout)
    except SaltException as error:
        return f"{left}: {_clause(error)}."
    lost = [name for name in minions if name not in found or not _is_clear(found[name])]
    if host not in found or found[host].release is None:
        return f"{left}, as {host}, which migrates it, does not answer or has no release."
    if lost:
        return f"{left}, as it is not known what {_few(lost)} may need."
    users = [
        name
        for name, one in found.items()
        if name in minions or host in _recorded_hosts({name: one})
    ]
    to = str(found[host].release)
    running = sorted({str(found[name].release) for name in users if found[name].release})
    keywords = {"root": wanted.root, "to": to, "running": running, "link": wanted.link}
    _report(f"migrating the schema down on {host}, where that is needed")
    try:
        function = f"{_TOOLS}.migrate_down"
        answer = _ask([host], "list", function, [_keywords(**keywords)], wanted.timeout).get(host)
    except SaltException as error:
        return f"{left}: {_clause(error)}."
    returned = (answer or {}).get("ret", _SILENT)
    if not isinstance(returned, Mapping):
        words = _clause(str(returned).removeprefix("ERROR: "))
        return _sentence(words if words.startswith("the schema is") else f"{left}: {words}")
    if not returned["changed"]:
        return None
    return f"{host} has migrated the schema down, from {returned['old']} to {returned['new']}."


def _is_clear(one: _Standing) -> bool:
    """Whether it is known what a minion runs."""
    return one.problem is None or _is_empty(one)


def _apply(
    wanted: _Wanted, minions: list[str], release: str, sls: list[str] | None = None
) -> dict[str, str]:
    """Apply the SLS with a release; why it has failed, by minion."""
    return _applied(wanted, minions, wanted.override(release), sls or wanted.sls)


def _applied(
    wanted: _Wanted, minions: list[str], pillar: dict[str, Any], sls: list[str]
) -> dict[str, str]:
    """Apply some SLS with a pillar; why it has failed, by minion."""
    try:
        answers = _states(wanted, minions, pillar, sls)
    except SaltException as error:
        return {name: _clause(error) for name in minions}
    failures = {name: _failure(answers[name]) for name in minions}
    return {name: why for name, why in failures.items() if why is not None}


def _states(
    wanted: _Wanted, minions: list[str], pillar: dict[str, Any], sls: list[str]
) -> dict[str, Any]:
    """Apply some SLS with a pillar; the answer of each minion."""
    environments = {"saltenv": wanted.saltenv, "pillarenv": wanted.pillarenv}
    arguments = _keywords(
        mods=sls,
        pillar=pillar,
        queue=_QUEUE,
        test=False,
        **{key: value for key, value in environments.items() if value is not None},
    )
    answers = _ask(minions, "list", "state.apply", [arguments], wanted.timeout)
    return {name: answers.get(name) for name in minions}


def _look(wanted: _Wanted, minions: list[str]) -> dict[str, _Standing]:
    """The state of these minions now."""
    try:
        found = _standings(wanted.root, wanted.link, minions, "list", wanted.timeout)
    except SaltException as error:
        found = dict.fromkeys(minions, _Standing(_clause(error), answers=False))
    return {name: found.get(name, _Standing(_SILENT, answers=False)) for name in minions}


def _call(wanted: _Wanted, minions: list[str], function: str, **arguments: Any) -> None:
    """Call one of the extension's functions; what comes of it is looked at later."""
    name, keywords = f"{_TOOLS}.{function}", [_keywords(**arguments)]
    try:
        log.info("%s: %s", name, _ask(minions, "list", name, keywords, wanted.timeout))
    except SaltException as error:
        log.error("%s: %s", name, error)


def _failure(answer: Any) -> str | None:
    """Why a state run has failed; None where it has not."""
    if answer is None:
        return _SILENT
    returned = answer.get("ret")
    if isinstance(returned, list):
        lines = [_without_traceback(str(one).strip().partition("\n")[0]) for one in returned]
        return _clause(" ".join(lines)) or "its states cannot be compiled"
    if not isinstance(returned, Mapping):
        return _clause(_without_traceback(str(returned))) or "its states cannot be run"
    states = [one for one in returned.values() if isinstance(one, Mapping) and "result" in one]
    failed = [one for one in states if one["result"] is False]
    own = [one for one in failed if not str(one.get("comment")).startswith("One or more requisite")]
    for one in sorted(own or failed, key=lambda one: one.get("__run_num__", 0)):
        comment = _without_traceback(str(one.get("comment")))
        return f"{one.get('__id__', one.get('name', 'a state'))}: {_clause(comment)}"
    if not states or answer.get("retcode"):
        return f"state.apply ends with return code {answer.get('retcode', 0)}"
    return None


def _without_traceback(text: str) -> str:
    """The message before a traceback, and the traceback's last line."""
    message, traceback, rest = text.partition("Traceback (most recent call last)")
    lines = rest.strip().splitlines()
    return f"{message} {lines[-1]}" if traceback and lines else message

"""Requirements as the metadata of distributions and requirement files have them (PEP 508).

Only whether a requirement counts, and which distribution it is met by: its version is not compared
with what is installed, as that is the installer's work.
"""

from __future__ import annotations

import ast
import operator as operators
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

_REQUIREMENT = re.compile(
    r"\s*([A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?)\s*(?:\[([^\]]*)\])?([^;]*)(?:;(.*))?\Z", re.A | re.S
)
_VERSION = re.compile(r"\d+(?:\.\d+)*")
_COMPARISONS = {
    ast.Eq: operators.eq,
    ast.NotEq: operators.ne,
    ast.Lt: operators.lt,
    ast.LtE: operators.le,
    ast.Gt: operators.gt,
    ast.GtE: operators.ge,
}
_VERSIONS = ("python_version", "python_full_version", "implementation_version")


class Requirement(NamedTuple):
    """What a distribution, or whoever builds, asks for."""

    name: str
    """In its normal form."""
    extras: frozenset[str]
    marker: str
    """When it counts; "" for always."""

    def applies(self, environment: Mapping[str, str], extras: Collection[str] = ()) -> bool:
        """Whether it counts; so does one with a marker that cannot be read.

        Args:
            environment: the values of the markers' variables, for a Python.
            extras: those that are wanted of the distribution that asks for it.
        """
        if not self.marker:
            return True
        try:
            tree = ast.parse(self.marker.strip(), mode="eval").body
            return any(_true(tree, {**environment, "extra": one}) for one in ("", *extras))
        except (SyntaxError, ValueError, KeyError, RecursionError, MemoryError):
            return True


def normal_name(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def parse(text: str) -> Requirement | None:
    """The requirement that a text is; None where it is something else, such as a path or an option.

    Args:
        text: `shop[web]>=2; python_version < "3.11"`, or one with ` @ URL`.
    """
    if " @ " in text:  # a URL may have a semicolon in it; the one of a marker has a space before
        named, _, url = text.partition(" @ ")
        text = f"{named} ;{url.partition(' ;')[2]}" if " ;" in url else named
    match = _REQUIREMENT.match(text.split(" --")[0])
    if match is None or not re.match(r"\s*(?:[<>=!~(@]|\Z)", match[3]):
        return None
    extras = filter(None, map(str.strip, (match[2] or "").split(",")))
    return Requirement(normal_name(match[1]), frozenset(map(normal_name, extras)), match[4] or "")


def _true(node: ast.expr, values: Mapping[str, str]) -> bool:
    """Whether a marker is true; its grammar is a part of Python's, but for `~=` and `===`.

    Raises:
        ValueError, KeyError: it is none.
    """
    if isinstance(node, ast.BoolOp):
        combine = all if isinstance(node.op, ast.And) else any
        return combine(_true(one, values) for one in node.values)
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        raise ValueError
    sides = (node.left, node.comparators[0])
    left, right = (_value(side, values) for side in sides)
    names = [side.id for side in sides if isinstance(side, ast.Name)]
    if names == ["extra"]:
        left, right = normal_name(left), normal_name(right)
    operator = node.ops[0]
    if isinstance(operator, ast.In):
        return left in right
    if isinstance(operator, ast.NotIn):
        return left not in right
    if names and names[0] in _VERSIONS:
        return _compared(operator, *_numbers(left, right))
    return _compared(operator, left, right)


def _value(node: ast.expr, values: Mapping[str, str]) -> str:
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    raise ValueError


def _numbers(left: str, right: str) -> tuple[list[int], list[int]]:
    """Two versions as numbers of one length: as short as one that ends with `.*`, else the longer.

    Raises:
        ValueError: one is no version.
    """
    found = []
    for text in (left, right):
        match = _VERSION.match(text)
        if match is None:
            raise ValueError
        found.append([int(part) for part in match[0].split(".")])
    shorter = [len(one) for one, text in zip(found, (left, right)) if text.endswith(".*")]
    length = min(shorter, default=max(map(len, found)))
    first, second = ([*one, *[0] * length][:length] for one in found)
    return first, second


def _compared(operator: ast.cmpop, left: Any, right: Any) -> bool:
    compare = _COMPARISONS.get(type(operator))
    if compare is None:
        raise ValueError
    return bool(compare(left, right))

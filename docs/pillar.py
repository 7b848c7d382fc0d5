#!/usr/bin/env python3
"""Write `docs/reference/pillar.md` and `pillar.schema.json` from the table of the pillar's keys.

    python docs/pillar.py            write them again
    python docs/pillar.py --check    fail where one is not what the table has

The table is in `_modules/releases_schema.py`, which checks a pillar by it.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent
TABLE = CHECKOUT / "_modules" / "releases_schema.py"

_HEAD = """# The pillar of the formula

*Written by `docs/pillar.py` from `_modules/releases_schema.py`: edit that.*

`pillar.example` is a commented one that deploys as it is. An unknown key, or a value of the wrong
type, is refused with one sentence; `salt web1 releases_pillar.check` reports whether a minion's
pillar is right. For an editor that completes and checks YAML by a JSON schema, there is
`pillar.schema.json`.

`{release}` is replaced by the release's name in `source`, in the other keys that are passed to
[`managed`](virtualenv_relocated.md#managed) (hashes, signatures, `smoke_tests`, the targets of
`shared_dirs` and `shared_files`, `python`, `file_owner`, `file_group`), and in `migrations`. It is
not replaced in `programs`, `web` and `health`, whose configuration stays in place when `current` is
switched.

What is removed from the pillar - a program, a socket, an app, a web server, or a process manager in
favour of the other one - is stopped by the next highstate (`releases` or `releases.enable`), and
its configuration is removed; `test=True` reports it. Releases and data stay. Nothing is stopped
where the pillar has no key `releases:apps` at all.
"""
_LABELS = {
    "count": "whole number",
    "positive": "whole number, at least 1",
    "seconds": "number, more than 0",
    "address": "port, or address and port",
    "shared": "list, or dictionary",
    "source": "text, list, or dictionary",
    "url directory": "path with a slash at its end",
    "upstream": "URL",
    "line": "text",
    "value": "text",
    "word": "name",
    "host": "text",
    "suffix": "text",
}


def table() -> ModuleType:
    """The module with the table."""
    spec = importlib.util.spec_from_file_location("releases_schema", TABLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # for its annotations
    spec.loader.exec_module(module)
    return module


def label(module: ModuleType, kind: Any) -> str:
    """What a kind is called in the reference."""
    if isinstance(kind, module.Listed):
        one = label(module, kind.kind)
        return f"{one}, or a list" if ", or" not in one else f"{one}; or a list of them"
    if isinstance(kind, module.Choice):
        return " or ".join(f"`{word}`" for word in kind.words)
    if isinstance(kind, module.Either):
        named = dict.fromkeys(label(module, one) for one in kind.kinds)
        return ", or ".join(named)
    if isinstance(kind, str):
        return _LABELS.get(kind, kind)
    return "dictionary"


def sections(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The sections of the reference, in order, with the path of each."""
    app = "releases:apps:NAME"
    yield "releases", module.TOP
    yield "releases:run", module.RUN
    yield app, module.APP
    for kind, section in module.MIGRATIONS.sections.items():
        yield f"{app}:migrations, of the kind {kind}", section
    yield f"{app}:programs:PROGRAM", module.PROGRAM
    yield f"{app}:health", module.HEALTH
    yield f"{app}:web:nginx", module.NGINX
    yield f"{app}:web:apache", module.APACHE
    yield f"{app}:limits", module.MANAGED["limits"].kind
    for server, section in module.SERVERS.items():
        yield f"releases:{server}", section
    yield "releases:builds:BUNDLE", module.BUILD


def reference(module: ModuleType) -> str:
    """The page."""
    parts = [_HEAD]
    for heading, section in sections(module):
        rows = ["| Key | Type | Default | What it is |", "|---|---|---|---|"]
        for key, one in section.keys.items():
            default = "needed" if one.needed else one.default
            rows.append(f"| `{key}` | {label(module, one.kind)} | {default} | {one.about} |")
        parts.append(f"## {heading}\n\n" + "\n".join(rows) + "\n")
    parts.append(families())
    return "\n".join(parts)


def families() -> str:
    """The defaults by OS family, as the formula has them."""
    import yaml

    formula = CHECKOUT / "formula" / "releases"
    found = yaml.safe_load((formula / "osfamilymap.yaml").read_text())
    shared = yaml.safe_load((formula / "defaults.yaml").read_text())
    keys = [
        ("supervisor", "conf_dir"),
        ("supervisor", "conf_suffix"),
        ("nginx", "conf_dir"),
        ("apache", "conf_dir"),
        ("apache", "reload_command"),
    ]
    rows = [f"| Key | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for server, key in keys:
        values = [
            one.get(server, {}).get(key) or shared.get(server, {}).get(key)
            for one in found.values()
        ]
        rows.append(f"| `{server}:{key}` | {' | '.join(f'`{value}`' for value in values)} |")
    text = (
        "Other families get the values of Debian. On Arch, nginx and Apache include no directory "
        "by themselves."
    )
    return f"## Defaults by OS family\n\n{text}\n\n" + "\n".join(rows) + "\n"


def main(arguments: list[str]) -> int:
    """Write or check the files."""
    module = table()
    wanted = {
        CHECKOUT / "docs" / "reference" / "pillar.md": reference(module),
        CHECKOUT / "pillar.schema.json": json.dumps(module.json_schema(), indent=1) + "\n",
    }
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--check" in arguments:
            print(f"{path.relative_to(CHECKOUT)} is not what {TABLE.name} has: run `make docs`")
        else:
            path.write_text(wanted[path])
            print(f"{path.relative_to(CHECKOUT)} written")
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

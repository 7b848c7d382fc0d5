"""Small packages for the tests: wheels written by hand, projects that build without an index."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

BACKEND = '''\
"""A build backend in the project itself: nothing has to be downloaded to build it."""

import base64, hashlib, os, re, subprocess, sys, time, zipfile

LEFT = "build/lib"


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    text = open("pyproject.toml").read()
    name, version = (re.search(key + ' = "(.*)"', text)[1] for key in ("name", "version"))
    requires = re.findall(r'"(.*)"', re.search(r"dependencies = \\[(.*)\\]", text)[1])
    info = f"{name}-{version}.dist-info"
    if os.path.exists("broken"):
        print("about to fail")
        sys.exit("error: the project is broken: " + open("broken").read().strip())
    until = time.monotonic() + 60
    while os.path.exists("slow") and not os.path.exists(open("slow").read()):
        assert time.monotonic() < until
        time.sleep(0.05)
    # As setuptools does: what an earlier build has left goes along.
    os.makedirs(LEFT, exist_ok=True)
    for module in os.listdir("src"):
        if module.endswith(".py"):
            with open(f"src/{module}", "rb") as source, open(f"{LEFT}/{module}", "wb") as file:
                file.write(source.read())
    files = {module: open(f"{LEFT}/{module}", "rb").read() for module in sorted(os.listdir(LEFT))}
    metadata = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    metadata += "Provides-Extra: more\\nRequires-Dist: gamma; extra == 'more'\\n"
    metadata += "".join(f"Requires-Dist: {one}\\n" for one in requires)
    files[f"{info}/METADATA"] = metadata.encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    if os.path.exists("src/ask_git"):
        command = ["git", "rev-parse", "HEAD"]
        files["revision.txt"] = subprocess.check_output(command).strip()
    rows = []
    for path, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(data)}\\n")
    files[f"{info}/RECORD"] = ("".join(rows) + f"{info}/RECORD,,\\n").encode()
    wheel = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, wheel), "w") as archive:
        for path, data in files.items():
            archive.writestr(zipfile.ZipInfo(path, time.localtime()[:6]), data)
    return wheel
'''


def wheel(
    directory: Path,
    name: str,
    version: str = "1.0",
    *,
    requires: Iterable[str] = (),
    scripts: Iterable[str] = (),
    files: Mapping[str, str] | None = None,
    value: str = "",
) -> Path:
    """Write a wheel.

    Args:
        directory: where to.
        name: of the distribution and its module, which prints the name, version and `value`.
        version: of the distribution.
        requires: what it depends on.
        scripts: the commands that it has.
        files: more files in it, by path.
        value: what tells it from another one of the same version.
    """
    info = f"{name}-{version}.dist-info"
    contents = {
        f"{name}/__init__.py": f"def main():\n    print({f'{name} {version} {value}'.strip()!r})\n",
        f"{name}/other.py": f"def test(x):\n    return x in {{'a', 'b', {name!r}}}\n",
        **(files or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + "".join(f"Requires-Dist: {one}\n" for one in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\n"
        + "".join(f"{script} = {name}:main\n" for script in scripts),
    }
    rows = [_row(path, text) for path, text in contents.items()]
    contents[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"])
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in contents.items():
            archive.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), text)
    return file


def _row(path: str, text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
    return f"{path},sha256={digest.decode()},{len(text.encode())}\n"


def unpacked(file: Path, directory: Path) -> None:
    """Install a wheel into a directory, as a system's package manager would."""
    with zipfile.ZipFile(file) as archive:
        archive.extractall(directory)


def digest(file: Path) -> str:
    """A file's SHA-256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def project(directory: Path, name: str = "shop", requires: Iterable[str] = ("beta",)) -> Path:
    """Write a project with the module `src/<name>.py`.

    A file `broken` in it breaks its build, and `slow` names a file that the build waits for.
    """
    (directory / "src").mkdir(parents=True)
    (directory / "src" / f"{name}.py").write_text("VALUE = 1\n")
    (directory / "backend.py").write_text(BACKEND)
    listed = ", ".join(f'"{one}"' for one in requires)
    (directory / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
        f'\n[project]\nname = "{name}"\nversion = "1.0"\ndependencies = [{listed}]\n'
    )
    return directory

"""Which directory becomes which package; all else is in pyproject.toml.

Salt wants its modules in `_modules`, `_runners` and `_states` of a file root, and in `modules`,
`runners` and `states` of an installed package: the same directories serve both. The formula is data
of the package; `saltext_virtualenv_tools.formula()` is its file root.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
EXTENSION = "saltext_virtualenv_tools"
LOADED_BY_SALT = {
    f"{EXTENSION}.{kind}": f"_{kind}"
    for kind in ("modules", "runners", "states")
    if (HERE / f"_{kind}").is_dir()
}
# To setuptools each directory with data is a package.
FORMULA = [f"{EXTENSION}.formula{below}" for below in ("", ".releases", ".releases.files")]

# setuptools keeps the files of the last build here, and would install modules that were moved.
shutil.rmtree(HERE / "build" / "lib", ignore_errors=True)

setup(
    packages=[
        *find_packages(str(HERE), include=["relocate_core", "relocate_core.*"]),
        EXTENSION,
        *LOADED_BY_SALT,
        *FORMULA,
    ],
    package_dir={**LOADED_BY_SALT, FORMULA[0]: "formula"},
    package_data={"relocate_core": ["py.typed"], **{name: ["*"] for name in FORMULA[1:]}},
)

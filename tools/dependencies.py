"""Audit the licences of all dependencies, and write them as a CycloneDX software bill of materials.

Reads the installed Python packages that the lock files name, the lock files of npm, and the crates
of the native module where cargo is installed. Exits with 1 if a licence is not on the list below.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from license_expression import ExpressionError, get_spdx_licensing
from packageurl import PackageURL

import mev

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-dev.lock")
NPM = ("web/client", "web/dashboard")
# Compatible with distribution under the MIT licence. Of MPL-2.0 no file is changed or copied here.
ALLOWED = frozenset(
    {
        "0BSD",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "BlueOak-1.0.0",
        "CC0-1.0",
        "ISC",
        "MIT",
        "MIT-0",
        "MIT-CMU",
        "MPL-2.0",
        "PSF-2.0",
        "Python-2.0",
        "Unicode-3.0",
        "Unlicense",
        "Zlib",
    }
)
# What older metadata calls them.
NAMES = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
# Packages whose metadata names none: read in their repositories.
READ = {"grafana-foundation-sdk": "Apache-2.0", "jsonalias": "MIT", "solders": "Apache-2.0"}
_CLASSIFIER = "License :: OSI Approved :: "
_SPDX = get_spdx_licensing()


@dataclass(frozen=True, slots=True)
class Package:
    """A dependency, with the expression of its licence."""

    ecosystem: str
    name: str
    version: str
    licence: str


def python_packages() -> Iterator[Package]:
    """Yield the packages of the lock files that this platform installs."""
    names = {
        name
        for lock in LOCKS
        for name in re.findall(r"^([a-z0-9][\w.-]*)==", (ROOT / lock).read_text(), re.MULTILINE)
    }
    for name in sorted(names):
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        yield Package("pypi", name, found.version, _licence(name, found))


def npm_packages() -> Iterator[Package]:
    """Yield the packages of the npm lock files."""
    for folder in NPM:
        lock = json.loads((ROOT / folder / "package-lock.json").read_text())
        for path, package in lock["packages"].items():
            if path and not package.get("link"):
                name = path.rpartition("node_modules/")[2]
                yield Package("npm", name, package["version"], package.get("license", ""))


def crates() -> Iterator[Package]:
    """Yield the crates of the native module."""
    cargo = shutil.which("cargo")
    if cargo is None:
        sys.stderr.write("dependencies: no cargo: the crates of native/ are left out\n")
        return
    command = [cargo, "metadata", "--locked", "--format-version", "1"]
    metadata = json.loads(subprocess.check_output(command, cwd=ROOT / "native"))  # noqa: S603
    for package in metadata["packages"]:
        if package["source"]:
            licence = (package["license"] or "").replace("/", " OR ")
            yield Package("cargo", package["name"], package["version"], licence)


def is_allowed(expression: str) -> bool:
    """Return whether a licence expression can be met with the allowed licences alone."""
    try:
        parsed = _SPDX.parse(expression, validate=True)
    except ExpressionError:
        return False
    if parsed is None:
        return False
    values = {key: _SPDX.TRUE if str(key) in ALLOWED else _SPDX.FALSE for key in parsed.symbols}
    met: bool = parsed.subs(values).simplify() == _SPDX.TRUE
    return met


def bill_of_materials(packages: list[Package]) -> str:
    """Return the packages as CycloneDX 1.6 in JSON."""
    licences = LicenseFactory()
    bom = Bom()
    bom.metadata.component = own = Component(
        name="mev",
        version=mev.__version__,
        type=ComponentType.APPLICATION,
        licenses=[licences.make_from_string("MIT")],
    )
    bom.register_dependency(own)
    for package in packages:
        space, _, name = package.name.rpartition("/")
        url = PackageURL(package.ecosystem, space or None, name, package.version)
        component = Component(
            name=package.name,
            version=package.version,
            purl=url,
            bom_ref=str(url),
            licenses=[licences.make_from_string(package.licence)],
        )
        bom.components.add(component)
        bom.register_dependency(own, [component])
    return JsonV1Dot6(bom).output_as_string(indent=2)


def _licence(name: str, found: Distribution) -> str:
    metadata = found.metadata
    if name in READ:
        return READ[name]
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [
        each.removeprefix(_CLASSIFIER)
        for each in metadata.get_all("Classifier") or ()
        if each.startswith(_CLASSIFIER)
    ]
    named = classifiers or [str(metadata.get("License", "")).strip()]
    return " AND ".join(NAMES.get(each, each) for each in named)


def main() -> None:
    """Audit, and write the bill of materials where one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sbom", type=Path, help="write a CycloneDX file")
    wanted = parser.parse_args().sbom
    packages = sorted(
        {*python_packages(), *npm_packages(), *crates()},
        key=lambda each: (each.ecosystem, each.name, each.version),
    )
    refused = [each for each in packages if not is_allowed(each.licence)]
    for each in refused:
        sys.stderr.write(
            f"dependencies: {each.ecosystem} {each.name} {each.version}: licence "
            f"{each.licence!r} is not on the list of tools/dependencies.py\n"
        )
    if wanted is not None:
        wanted.write_text(bill_of_materials(packages))
    sys.stdout.write(f"{len(packages)} dependencies, {len(refused)} with a licence not allowed\n")
    sys.exit(bool(refused))


if __name__ == "__main__":
    main()

"""Hold requirements.txt and requirements-dev.txt against pyproject.toml and against each other. Needs no network.

Exits 1 and says why where a file names a URL or an index, a direct dependency is not pinned or its pin is not what
pyproject.toml allows, or the two files pin one package differently.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
FOREIGN = re.compile(r"://|^\s*-|\s@\s")
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)(?:\s*;\s*(?P<marker>.+))?$")


def pins(text: str) -> dict[str, dict[str, str]]:
    """Return {package: {marker: version}} of a requirements file.

    >>> pins("numpy==2.4.6 ; python_full_version < '3.12'")
    {'numpy': {"python_full_version < '3.12'": '2.4.6'}}
    """
    found: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        match = PIN.match(line.strip())
        if match:
            found.setdefault(canonicalize_name(match["name"]), {})[match["marker"] or ""] = match["version"]
    return found


def problems(project: str, run: str, dev: str) -> list[str]:
    """Return what is wrong with the texts of pyproject.toml, requirements.txt and requirements-dev.txt."""
    metadata = tomllib.loads(project)["project"]
    direct = {"requirements.txt": metadata["dependencies"]}
    direct["requirements-dev.txt"] = metadata["dependencies"] + metadata["optional-dependencies"]["dev"]
    found = []
    pinned = {"requirements.txt": pins(run), "requirements-dev.txt": pins(dev)}
    for name, text in (("requirements.txt", run), ("requirements-dev.txt", dev)):
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.startswith("#") and (FOREIGN.search(line) or not PIN.match(line.strip())):
                found.append(f"{name}:{number}: got {line.strip()!r}; allowed: name==version, no URL, no option")
        for requirement in map(Requirement, direct[name]):
            versions = pinned[name].get(canonicalize_name(requirement.name), {})
            if not versions:
                found.append(f"{name}: {requirement.name} is not pinned; run: make lock")
            found += [
                f"{name}: {requirement.name}: got {version}; allowed: {requirement.specifier}"
                for version in versions.values()
                if not requirement.specifier.contains(version, prereleases=True)
            ]
    for package, versions in pinned["requirements.txt"].items():
        other = pinned["requirements-dev.txt"].get(package)
        if other != versions:
            found.append(f"{package}: requirements.txt has {versions}, requirements-dev.txt {other}; run: make lock")
    return found


def main() -> int:
    """Check the files of this repository."""
    names = ("pyproject.toml", "requirements.txt", "requirements-dev.txt")
    found = problems(*((ROOT / name).read_text(encoding="utf-8") for name in names))
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

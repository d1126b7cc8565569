"""Tell uv what pip is told: uv reads neither pip.conf nor PIP_* variables.

Prints ``export NAME=value`` lines for the shell, one per pip setting that has a uv counterpart and that uv has not
been given already. Run with the Python of the virtual environment; needs nothing but pip.
"""

from __future__ import annotations

import ast
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping

COUNTERPARTS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "cert": "SSL_CERT_FILE",
    "trusted-host": "UV_INSECURE_HOST",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}
SECTIONS = ("global", "install", ":env:")
"""Sections of pip's settings, the strongest last."""


def parse(listing: str) -> dict[str, str]:
    r"""Read the output of ``pip config list``; of several sections that set a key the strongest wins.

    >>> parse("global.timeout='9'\n:env:.timeout='60'")
    {'timeout': '60'}
    """
    settings: dict[str, tuple[int, str]] = {}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if section in SECTIONS and settings.get(key, (-1, ""))[0] <= SECTIONS.index(section):
            settings[key] = (SECTIONS.index(section), " ".join(str(ast.literal_eval(value)).split()))
    return {key: value for key, (_, value) in settings.items()}


def exports(settings: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables to set; what ``environment`` holds already is left alone.

    >>> exports({"index-url": "file:///wheels"}, {})
    {'UV_DEFAULT_INDEX': 'file:///wheels'}
    >>> exports({"index-url": "file:///wheels"}, {"UV_DEFAULT_INDEX": "file:///mine"})
    {}
    """
    found = {COUNTERPARTS[key]: value for key, value in settings.items() if key in COUNTERPARTS}
    if "UV_INDEX" in found:
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip looks in every index; uv stops at the first
    return {name: value for name, value in sorted(found.items()) if name not in environment}


def main() -> None:
    """Print the exports."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    for name, value in exports(parse(listing.stdout), os.environ).items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()

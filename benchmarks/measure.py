"""Run one benchmark's rows in this process: ``python -m benchmarks.measure bench_data [--quick] [--to rows.jsonl]``.

Prints a line for each row as it is found and appends it as a line of JSON. ``python -m benchmarks`` runs this once for
every benchmark, so that none inherits another's memory, threads or caches.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
from pathlib import Path

from benchmarks.results import row_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--to", type=Path, default=Path(os.devnull))
    options = parser.parse_args()
    prefix = options.name.removeprefix("bench_") + "/"
    with options.to.open("a", encoding="utf-8") as file:
        for row in importlib.import_module(f"benchmarks.{options.name}").rows(options.quick):
            if not row.id.startswith(prefix):
                raise ValueError(f"{options.name}: got a row {row.id!r}; allowed: names that begin with {prefix!r}")
            print(row_text(row), flush=True)
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            file.flush()


if __name__ == "__main__":
    main()

"""Run every benchmark, or those named, each in a process of its own: ``python -m benchmarks [bench_assign ...]``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = tuple(sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py")))


def main(chosen: list[str]) -> int:
    """Run the benchmarks named (all where none is); return 2 for an unknown name, 1 where one failed, else 0."""
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        print(f"benchmarks: got {', '.join(unknown)}; allowed: {' | '.join(NAMES)}", file=sys.stderr)
        return 2
    failed = 0
    for name in chosen or NAMES:
        print(f"\n== {name}", flush=True)
        failed += subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode != 0
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

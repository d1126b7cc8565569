"""Run the published-method comparison on real data through the pipeline and print the results as markdown.

    python -m scripts.real_data fairface64 --root FOLDER     # FOLDER holds fairface64/labels.csv and its images

Every row is one ``dvc exp run`` with the settings printed beside it; upstream stages are shared through DVC's cache.
Run it in a clean clone: params.yaml of the workspace changes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

FACES = [
    "data.label=gender",
    "data.group=race",
    "data.image_size=64",
    "pretrain.epochs=8",
    "quantize.epochs=3",
]
LESIONS = [
    "data.label=malignant",
    "data.group=[sex,age_group]",
    "data.min_group_size=100",
    "data.small_groups=drop",
    "data.image_size=64",
    "pretrain.epochs=12",
    "pretrain.class_weights=balanced",
    "quantize.epochs=3",
    "quantize.class_weights=balanced",
]
MANIFEST = "datasets.folder.class_names={{0:benign,1:malignant}}"
TASKS: dict[str, list[str]] = {
    "fairface64": ["data.name=folder", "data.path={root}/fairface64", *FACES],
    "fairface64-loader": ["data.name=fairface", "data.path={root}/fairface64-published", *FACES],
    "ham10000_64": ["data.name=folder", "data.path={root}/ham10000_64", MANIFEST, "data.split_by=lesion_id", *LESIONS],
    "ham10000_64-loader": ["data.name=ham10000", "data.path={root}/ham10000_64-published", *LESIONS],
}
METHODS: dict[str, list[str]] = {
    "fp32": ["quant_mode=none"],
    "uniform8": ["quant_mode=uniform", "quantize.uniform_bits=8"],
    "uniform4": ["quant_mode=uniform", "quantize.uniform_bits=4"],
    "fair_static_qat, grape+balanced": ["quant_mode=fair_static_qat", "reducer=balanced"],
    "fair_static_qat, grape+max": ["quant_mode=fair_static_qat", "reducer=max"],
}


def run_method(task: str, method: str, root: Path, seed: int, extra: list[str]) -> dict[str, Any]:
    """Run one experiment and return its metrics, its settings and its wall time in seconds."""
    settings = [f"seed={seed}", *(item.format(root=root) for item in TASKS[task]), *METHODS[method], *extra]
    command = ["dvc", "exp", "run"]
    for setting in settings:
        command += ["-S", setting]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout)
    seconds = time.perf_counter() - start
    stages = [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    return {"method": method, "settings": settings, "seconds": seconds, "stages": stages, "metrics": metrics}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the comparison as a markdown table, one column per group."""
    groups = list(rows[0]["metrics"]["group"])
    head = ["method", "bits", "packed MB", "accuracy", "worst group", "gap", "EOdd", *groups, "stages run", "wall s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        after, cost = row["metrics"]["quantized"], row["metrics"]["cost"]
        cells = [
            row["method"],
            f"{cost['avg_bits']['by_parameter']:.2f}",
            f"{cost['packed_mb']:.2f}",
            f"{100 * after['overall_acc']:.1f}",
            f"{100 * after['worst_acc']:.1f} ({after['worst_group']})",
            f"{100 * after['acc_gap']['max_minus_min']:.1f}",
            f"{100 * after['eodd']:.1f}",
            *(f"{100 * after['group'][name]['accuracy']:.1f}" for name in groups),
            " → ".join(row["stages"]),
            f"{row['seconds']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run every method on one task and print the table and the commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="extra", help="further settings")
    arguments = parser.parse_args()
    rows = []
    for method in arguments.methods:
        rows.append(run_method(arguments.task, method, arguments.root.resolve(), arguments.seed, arguments.extra))
        print(table(rows), file=sys.stderr)
    print(table(rows) + "\n")
    for row in rows:
        shown = [item.replace(str(arguments.root.resolve()), "$DATA") for item in row["settings"]]
        print(f"- {row['method']}: `dvc exp run " + " ".join(f"-S '{item}'" for item in shown) + "`")


if __name__ == "__main__":
    main()

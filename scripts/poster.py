"""Three tables of mitigation, before and after quantization: ``python -m scripts.poster WORKSPACE... --out FOLDER``.

A workspace is a folder as ``dvc repro baseline`` leaves it (docs/curves.md); several of one task are its seeds. The
tables are those of the study "Fairness of model quantization": the classifier in full precision, quantized, and
quantized with mitigation after that; accuracy, accuracy per group, demographic parity difference and equalized odds
difference, each on the test split. Mitigations are fine-tuning with FairALM and calibrated equalized odds.

    full precision          as trained; fine-tuned with FairALM; calibrated equalized odds
    quantized               the same three, then uniform widths without training: calibrated equalized odds keeps what
                            it found in full precision
    quantized, mitigated    fine-tuned without a fairness loss (what training alone does); fine-tuned with FairALM;
                            calibrated equalized odds fitted on the quantized classifier
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import logging
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fairquant import plugins
from fairquant.artifacts import CsvWriter, write_text
from fairquant.config import Config
from fairquant.config.load import check_classes, parse_config
from fairquant.errors import UserError
from fairquant.evaluate.gaps import each_warning_once, large_enough
from fairquant.evaluate.mitigation import mitigated
from fairquant.evaluate.summary import metric_keys, summarise
from fairquant.predictions import Predictions
from fairquant.report.cells import as_markdown, percent
from fairquant.terminal import failed, show
from scripts.curves.points import parse_setting, with_settings
from scripts.curves.session import Session
from scripts.curves.workspace import Workspace, open_all

FULL, QUANTIZED, AFTER = TABLES = ("full precision", "quantized", "quantized, mitigated")
NONE, TUNED, FAIRALM, CALIBRATED = ("none", "fine-tuned", "FairALM", "calibrated equalized odds")
GAPS = {"dp_difference": "DP difference", "equalized_odds": "EOdds difference"}
METHOD = "calibrated_equalized_odds"


@dataclass(frozen=True)
class Row:
    """One line of one table for one seed; ``bits`` is 32 in full precision; shares in [0, 1], None where undefined."""

    task: str
    seed: int
    table: str
    bits: int
    mitigation: str
    accuracy: float | None
    gaps: Mapping[str, float | None]
    groups: Mapping[str, float | None]


class Poster:
    """Measures the rows of one workspace."""

    def __init__(self, workspace: Workspace, settings: Mapping[str, Any], folder: Path) -> None:
        """Load the classifier; ``settings`` of params.yaml hold for all rows, ``folder`` keeps interrupted training."""
        self.workspace, self.settings, self.folder = workspace, settings, folder
        self.config = self._config({})
        check_classes((METHOD,), workspace.store.classes)
        self.session = Session(workspace, self.config, folder)

    def rows(self, widths: Sequence[int]) -> Iterable[Row]:
        """Yield every row, full precision first."""
        plain, fair = self.session.model, self._tuned(FAIRALM, None)
        before = self.session.before
        yield from self._three(FULL, 32, before, self._predict(fair), before)
        for bits in widths:
            after = self._predict(self._rounded(plain, bits))
            yield from self._three(QUANTIZED, bits, after, self._predict(self._rounded(fair, bits)), before)
            for mitigation in (TUNED, FAIRALM):
                yield self._row(AFTER, bits, mitigation, self._predict(self._tuned(mitigation, bits)))
            yield self._row(AFTER, bits, CALIBRATED, after, fitted_on=after)

    def _three(
        self, table: str, bits: int, plain: Predictions, fair: Predictions, fitted_on: Predictions
    ) -> Iterable[Row]:
        yield self._row(table, bits, NONE, plain)
        yield self._row(table, bits, FAIRALM, fair)
        yield self._row(table, bits, CALIBRATED, plain, fitted_on=fitted_on)

    def _row(
        self, table: str, bits: int, mitigation: str, predictions: Predictions, *, fitted_on: Predictions | None = None
    ) -> Row:
        """Measure on the test split; ``fitted_on``: whose validation split calibrated equalized odds is fitted on."""
        section, groups, test = self.config.evaluate, predictions.groups, predictions["test"]
        counted = large_enough(test.groups, groups=groups, minimum=section.min_group_size)
        if fitted_on is not None:
            both = dataclasses.replace(predictions, splits={"val": fitted_on["val"], "test": test})
            options = {METHOD: self.config.options("postprocess", METHOD)}
            found = mitigated({table: both}, methods=options, section=section, counted=counted)[METHOD][table]
            accuracy, gaps = found["overall"], found["gap"]
        else:
            found = summarise(test, classes=predictions.classes, groups=groups, counted=counted,
                              positive_class=section.positive_class)  # fmt: skip
            accuracy, gaps = found["overall_acc"], found
        by_group = {
            group: found["group"][key]["accuracy"] for group, key in zip(groups, metric_keys(groups), strict=True)
        }
        seed, task = self.workspace.config.seed, self.workspace.task
        return Row(task, seed, table, bits, mitigation, accuracy, {name: gaps[name] for name in GAPS}, by_group)

    def _config(self, settings: Mapping[str, Any]) -> Config:
        own = {**self.settings, **settings, "evaluate.parity": True}
        return parse_config(with_settings(self.workspace.params, own))

    def _predict(self, model: Any) -> Predictions:
        from fairquant.devices import seed_everything
        from fairquant.train.predict import predict_splits

        seed_everything(0)
        size, precision = self.config.evaluate.batch_size, self.config.precision
        return predict_splits(model, self.workspace.store, ("val", "test"), batch_size=size,
                              device=self.session.device, precision=precision)  # fmt: skip

    def _rounded(self, model: Any, bits: int) -> Any:
        """Return a copy of ``model`` quantized at ``bits`` everywhere, not trained."""
        return self._quantize(self._config({"quant_mode": "uniform", "quantize.uniform_bits": bits}), model, bits)

    def _tuned(self, mitigation: str, bits: int | None) -> Any:
        """Return the classifier fine-tuned, quantized at ``bits`` meanwhile or in full precision."""
        settings = {"quant_mode": "fair_static_qat", "quantize.fairness_loss": "fairalm", "quantize.distill.weight": 0}
        config = self._config(settings | ({} if mitigation == FAIRALM else {"quantize.fairness_weight": 0}))
        return self._train(config) if bits is None else self._quantize(config, self.session.model, bits)

    def _train(self, config: Config) -> Any:
        """Return the classifier fine-tuned in full precision, with the settings of ``config.quantize``."""
        from fairquant.devices import seed_everything
        from fairquant.train.loop import fit
        from fairquant.train.terms import LossTerm

        job, name = self._job(config, self.session.model, 32), config.quantize.fairness_loss
        term = LossTerm.of(
            plugins.load("loss", name), weight=config.quantize.fairness_weight, options=config.options("loss", name)
        )
        seed_everything(config.seed)
        fit(job.model, job.store, section=job.training, seed=job.seed, device=job.device, precision=job.precision,
            terms=[term], checkpoint_dir=job.checkpoint_dir)  # fmt: skip
        return job.model

    def _quantize(self, config: Config, model: Any, bits: int) -> Any:
        from fairquant.devices import seed_everything

        seed_everything(config.seed)
        return plugins.load("mode", config.quant_mode).quantize(self._job(config, model, bits)).model

    def _job(self, config: Config, model: Any, bits: int) -> Any:
        import numpy as np

        from fairquant.allocate.bitmap import BitMap, unit_shape
        from fairquant.modes import QuantizeJob

        info = self.workspace.info
        widths = {
            name: np.full(unit_shape("per_channel", shape), bits, np.uint8) for name, shape in info.shapes.items()
        }
        job = QuantizeJob.of(config, model=copy.deepcopy(model), store=self.workspace.store,
                             bits=BitMap("per_channel", widths), roles=info.roles)  # fmt: skip
        return dataclasses.replace(job, checkpoint_dir=self.folder / "resume")


def markdown(rows: Sequence[Row]) -> str:
    """Return the three tables of each task, in percent; mean ± standard deviation where there are several seeds."""
    parts = []
    for task in dict.fromkeys(row.task for row in rows):
        for table in TABLES:
            own = [row for row in rows if (row.task, row.table) == (task, table)]
            if own:
                seeds = len({row.seed for row in own})
                parts += [f"### {task}: {table} ({seeds} seed{'s' if seeds > 1 else ''})", as_markdown(_cells(own))]
    return "\n\n".join(parts) + "\n"


def _cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    groups = list(rows[0].groups)
    head = ("mitigation", "bits", "accuracy %", *(f"{group} %" for group in groups), *GAPS.values())
    cells = [head]
    for key in dict.fromkeys((row.bits, row.mitigation) for row in rows):
        same = [row for row in rows if (row.bits, row.mitigation) == key]
        columns = [[row.accuracy for row in same]]
        columns += [[row.groups[group] for row in same] for group in groups]
        columns += [[row.gaps[name] for row in same] for name in GAPS]
        cells.append((key[1], str(key[0]), *map(_mean, columns)))
    return cells


def _mean(values: Sequence[float | None]) -> str:
    """Write the mean in percent with the deviation over seeds; undefined where one of them is.

    >>> _mean([0.5]), _mean([0.5, 0.52]), _mean([0.5, None])
    ('50.0', '51.0 ± 1.4', '–')
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return percent(None)
    mean = percent(statistics.fmean(known))
    return mean if len(known) == 1 else f"{mean} ± {percent(statistics.stdev(known))}"


def as_csv(rows: Sequence[Row]) -> str:
    """Return a line per row and measure: task, seed, table, bits, mitigation, measure, group, value."""
    out = io.StringIO()
    writer = CsvWriter(out)
    writer.writerow(["task", "seed", "table", "bits", "mitigation", "measure", "group", "value"])
    for row in rows:
        values = [("accuracy", "", row.accuracy), *((name, "", value) for name, value in row.gaps.items())]
        values += [("accuracy", group, value) for group, value in row.groups.items()]
        for measure, group, value in values:
            text = "" if value is None else f"{value:.6g}"
            writer.writerow([row.task, row.seed, row.table, row.bits, row.mitigation, measure, group, text])
    return out.getvalue()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m scripts.poster", description=(__doc__ or "").split(":")[0])
    parser.add_argument(
        "workspaces", nargs="+", metavar="[TASK=]WORKSPACE", help="folder as dvc repro baseline leaves it"
    )
    parser.add_argument("--bits", nargs="+", type=int, default=[8, 4], help="uniform widths, default: 8 4")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="settings of params.yaml for every row: --set quantize.epochs=5")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="folder for poster.md and poster.csv")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; a user's mistake is one line and exit code 2."""
    options = parse(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        wrong = [bits for bits in options.bits if not 2 <= bits <= 16]
        if wrong or len(set(options.bits)) < len(options.bits):
            raise UserError(f"--bits: got {' '.join(map(str, options.bits))}; allowed: each once, from 2 to 16")
        settings = dict(map(parse_setting, options.set))
        rows: list[Row] = []
        with each_warning_once():
            for workspace in open_all(options.workspaces):
                for row in Poster(workspace, settings, options.out / "cache").rows(options.bits):
                    rows.append(row)
                    write_text(options.out / "poster.csv", as_csv(rows))  # what is measured survives an interruption
                    tqdm.write(f"{row.task}, seed {row.seed}: {row.table}, {row.bits} bits, {row.mitigation}: "
                               f"{percent(row.accuracy)}", file=sys.stderr)  # fmt: skip
        text = markdown(rows)
        write_text(options.out / "poster.md", text)
        show(text)
    except Exception as error:
        return failed(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

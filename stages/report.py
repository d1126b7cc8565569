"""report: tables, plots and the classic files of a finished run."""

from fairquant import stage
from fairquant.config import Config
from fairquant.report.inputs import plain_params, read_inputs
from fairquant.report.write import write_report


def main(config: Config) -> None:
    """Read every stage's metrics and tables; write report/."""
    write_report(read_inputs(plain_params(config)))


if __name__ == "__main__":
    stage.run(
        main,
        reads=(
            "seed", "reducer", "importance_metric", "allocator", "granularity", "quant_mode", "device", "precision",
            "compile", "debug", "workers", "parallel", "data", "datasets", "model", "pretrain", "importance", "budget",
            "assign", "quantize", "evaluate", "gates", "export", "report",
        ),
    )  # fmt: skip

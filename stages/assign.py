"""assign: spend the bits. Importance maps (and weights) → widths of every unit, their metrics, and why."""

from fairquant import stage
from fairquant.artifacts import read_json, write_json, write_text
from fairquant.assign.outputs import CURVE_COLUMNS, describe, read_weights
from fairquant.assign.run import assign
from fairquant.config import Config
from fairquant.cost.summary import bit_distribution, layer_shares, to_csv
from fairquant.importance.maps import ImportanceMaps


def main(config: Config) -> None:
    """Read models/importance.safetensors, models/pretrained.* and, to measure, data/prepared; write models/bits.*."""
    model = "models/pretrained.safetensors"
    info, maps = read_json("models/pretrained.json"), ImportanceMaps.load("models/importance.safetensors")
    assignment = assign(maps, info, config, lambda: read_weights(model, info))
    reports = describe(assignment, maps, info, config, model)
    assignment.bits.save("models/bits.safetensors")
    write_text("plots/bits/layers.csv", to_csv(layer_shares(assignment.bits)))
    write_text("plots/bits/bit_distribution.csv", to_csv(bit_distribution(assignment.bits, info)))
    write_text("plots/bits/bits.csv", to_csv(reports.layers))
    write_text("plots/bits/pareto.csv", to_csv(reports.curve, CURVE_COLUMNS))
    write_json("metrics/bits.json", reports.metrics)


if __name__ == "__main__":
    stage.run(
        main,
        reads=(
            "seed", "device", "precision", "reducer", "allocator", "granularity", "budget", "assign", "quantize.scale",
            "quantize.percentile", "quantize.weight_scheme", "quantize.correction_images",
        ),
    )  # fmt: skip

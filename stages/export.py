"""export: write the files that leave the pipeline, and hold what runs of them against what was evaluated."""

from pathlib import Path

from fairquant import stage
from fairquant.config import Config


def main(config: Config) -> None:
    """Read models/quantized.*, its predictions and data/prepared; write models/export/, its predictions and metrics."""
    from fairquant.artifacts import write_json
    from fairquant.data.store import Store
    from fairquant.devices import resolve_device, seed_everything
    from fairquant.export.run import Checks, Quantized, as_predictions, timed, write_files
    from fairquant.predictions import Predictions

    seed_everything(0)
    folder, store, device = Path("models/export"), Store.open(), resolve_device(config.device)
    source = Quantized.load("models/quantized.safetensors", store)
    metrics = write_files(folder, source, section=config.export)
    simulation = Predictions.load("models/quantized_predictions.safetensors")["test"]
    checks = Checks(folder, store, simulation, config.export, config.evaluate, device, config.precision)
    found = checks.predictions()
    metrics |= checks.compare(found, form=metrics.get("form", {}))
    metrics |= timed("models/pretrained.safetensors", folder, section=config.export)
    as_predictions(found, store).save("models/exported_predictions.safetensors")
    write_json("metrics/export.json", metrics)


if __name__ == "__main__":
    stage.run(main, reads=("device", "precision", "evaluate", "export"))

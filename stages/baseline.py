"""baseline: measure the full-precision classifier per group. Model → predictions on val and test, their metrics."""

from typing import Any

from fairquant import stage
from fairquant.config import Config
from fairquant.parallel.launch import start


def main(config: Config) -> None:
    """Read data/prepared and models/pretrained.*; write models/baseline_predictions.safetensors and the metrics."""
    from fairquant.artifacts import write_json
    from fairquant.data.store import Store
    from fairquant.devices import resolve_device, seed_everything
    from fairquant.evaluate.gaps import large_enough
    from fairquant.evaluate.summary import summarise
    from fairquant.models.io import load_model
    from fairquant.parallel.collectives import is_first
    from fairquant.train.predict import predict_splits

    store, device, section = Store.open(), resolve_device(config.device), config.evaluate
    seed_everything(0)
    model, _ = load_model("models/pretrained.safetensors")
    predictions = predict_splits(model, store, batch_size=section.batch_size, device=device, precision=config.precision)
    if not is_first():
        return
    predictions.save("models/baseline_predictions.safetensors")
    members, groups = predictions["test"].groups, store.group_names
    options: dict[str, Any] = {"parity": section.parity, "positive_class": section.positive_class}
    options["counted"] = large_enough(members, groups=groups, minimum=section.min_group_size)
    metrics = {
        split: summarise(part, classes=store.classes, groups=groups, **options)
        for split, part in predictions.splits.items()
    }
    write_json("metrics/baseline.json", metrics)


if __name__ == "__main__":
    stage.run(main, reads=("device", "precision", "parallel", "evaluate"), start=start)

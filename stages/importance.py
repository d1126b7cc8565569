"""importance: measure what every weight is worth to each group. Model → one map per group and layer."""

from fairquant import stage
from fairquant.config import Config
from fairquant.parallel.launch import start


def main(config: Config) -> None:
    """Read data/prepared and models/pretrained.*; write models/importance.safetensors."""
    from fairquant.data.store import Store
    from fairquant.devices import resolve_device, seed_everything
    from fairquant.importance.measure import measure_importance
    from fairquant.models.io import load_model
    from fairquant.parallel.collectives import is_first

    store, section = Store.open(), config.importance
    seed_everything(config.seed)
    model, _ = load_model("models/pretrained.safetensors")
    maps = measure_importance(
        model,
        store,
        metric=config.importance_metric,
        options=config.options("importance", config.importance_metric),
        by=section.by,
        normalize=section.normalize,
        batch_size=section.batch_size,
        samples_per_group=section.samples_per_group,
        device=resolve_device(config.device),
        precision=config.precision,
        seed=config.seed,
        progress=True,
    )
    if is_first():
        maps.save("models/importance.safetensors")


if __name__ == "__main__":
    stage.run(main, reads=("seed", "device", "precision", "parallel", "importance_metric", "importance"), start=start)

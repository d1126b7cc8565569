"""pretrain: train, or import, the full-precision classifier. Prepared data → model, its metrics and training curve."""

from typing import Any

from fairquant import stage
from fairquant.config import Config
from fairquant.parallel.launch import start


def main(config: Config) -> None:
    """Read data/prepared; write models/pretrained.*, metrics/pretrain.json and plots/pretrain/."""
    from fairquant.artifacts import write_json
    from fairquant.data.store import Store
    from fairquant.devices import resolve_device, seed_everything
    from fairquant.evaluate.summary import summarise
    from fairquant.models.build import build
    from fairquant.models.io import save_model
    from fairquant.models.spec import ModelSpec
    from fairquant.parallel.collectives import is_first
    from fairquant.train import checkpoint
    from fairquant.train.loop import fit
    from fairquant.train.predict import predict

    store, device = Store.open(), resolve_device(config.device)
    seed_everything(config.seed)
    spec = ModelSpec(config.model.name, store.classes, store.image_size, store.meta["mean"], store.meta["std"])
    model = build(spec, weights=config.model.weights, strict=config.model.strict, seed=config.seed)
    section = config.pretrain.model_copy(update={"epochs": min(config.pretrain.epochs, 1)} if config.debug else {})
    how: dict[str, Any] = {"device": device, "precision": config.precision}
    several: dict[str, Any] = {"parallel": config.parallel, "compile_model": config.compile}
    history = fit(model, store, section=section, seed=config.seed, checkpoint_dir=checkpoint.root(), **how, **several)
    val = predict(model, store, "val", batch_size=section.batch_size, **how)
    if not is_first():
        return
    summary = summarise(val, classes=store.classes, groups=store.group_names, parity=False)
    epochs = {"run": len(history.rows), "best": history.best_epoch}
    save_model("models/pretrained.safetensors", model, spec, meta={"epochs": epochs})
    write_json("metrics/pretrain.json", {"val": summary, "epochs": epochs})
    history.write_curve("plots/pretrain/curve.csv")
    history.write_log("plots/pretrain/training.log")


if __name__ == "__main__":
    stage.run(
        main, reads=("seed", "device", "precision", "compile", "debug", "parallel", "model", "pretrain"), start=start
    )

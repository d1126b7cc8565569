"""quantize: spend the bits. Full-precision model + widths → quantized (and fine-tuned) model, its training curve."""

from fairquant import plugins, stage
from fairquant.config import Config


def main(config: Config) -> None:
    """Read data/prepared, models/pretrained.*, models/bits.*; write models/quantized.* and plots/quantize/."""
    from fairquant.allocate.bitmap import BitMap
    from fairquant.data.store import Store
    from fairquant.devices import resolve_device, seed_everything
    from fairquant.models.io import load_description, load_model
    from fairquant.modes import QuantizeJob, with_start
    from fairquant.quantize.state import save_quantized
    from fairquant.train import checkpoint

    seed_everything(config.seed)
    model, spec = load_model("models/pretrained.safetensors")
    job = QuantizeJob(
        model=model,
        store=Store.open(),
        bits=BitMap.load("models/bits.safetensors"),
        section=config.quantize,
        seed=config.seed,
        device=resolve_device(config.device),
        precision=config.precision,
        protect=config.assign.protect,
        roles=load_description("models/pretrained.json")["roles"],
        checkpoint_dir=checkpoint.root(),
        debug=config.debug,
    )
    result = plugins.load("mode", config.quant_mode).quantize(job)
    save_quantized("models/quantized.safetensors", result.model, spec)
    history = with_start(job, result)
    history.write_curve("plots/quantize/curve.csv")
    history.write_log("plots/quantize/training.log")


if __name__ == "__main__":
    stage.run(main, reads=("seed", "device", "precision", "debug", "quant_mode", "quantize", "assign"))

"""quantize: spend the bits. Full-precision model + widths → quantized (and fine-tuned) model, its training curve."""

from fairquant import plugins, stage
from fairquant.config import Config
from fairquant.parallel.launch import start


def main(config: Config) -> None:
    """Read data/prepared, models/pretrained.*, models/bits.*; write models/quantized.* and plots/quantize/."""
    from fairquant.allocate.bitmap import BitMap
    from fairquant.artifacts import write_json, write_text
    from fairquant.cost.summary import bit_distribution, layer_shares, summarise_widths, to_csv
    from fairquant.data.store import Store
    from fairquant.devices import seed_everything
    from fairquant.models.io import load_description, load_model
    from fairquant.modes import QuantizeJob, with_start
    from fairquant.parallel.collectives import is_first
    from fairquant.quantize.activate import input_bits
    from fairquant.quantize.attach import bitmap_of
    from fairquant.quantize.state import save_quantized

    seed_everything(config.seed)
    model, spec = load_model("models/pretrained.safetensors")
    info, bits = load_description("models/pretrained.json"), BitMap.load("models/bits.safetensors")
    job = QuantizeJob.of(config, model=model, store=Store.open(), bits=bits, roles=info["roles"])
    result = plugins.load("mode", config.quant_mode).quantize(job)
    history, final = with_start(job, result), bitmap_of(result.model)
    if not is_first():
        return
    save_quantized("models/quantized.safetensors", result.model, spec)
    history.write_curve("plots/quantize/curve.csv")
    history.write_log("plots/quantize/training.log")
    write_text("plots/quantize/layers.csv", to_csv(layer_shares(final)))
    write_text("plots/quantize/bit_distribution.csv", to_csv(bit_distribution(final, info)))
    widths = summarise_widths(bits, final, info, activation_bits=input_bits(result.model))
    write_json("metrics/quantize.json", {**history.summary(), **widths})


if __name__ == "__main__":
    stage.run(
        main, start=start, reads=(
            "seed", "device", "precision", "compile", "debug", "parallel", "quant_mode", "quantize", "assign",
            "importance", "importance_metric", "reducer", "granularity",
        ),
    )  # fmt: skip

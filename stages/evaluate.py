"""evaluate: compare the quantized with the full-precision classifier per group, on the same samples."""

from fairquant import stage
from fairquant.config import Config


def main(config: Config) -> None:
    """Read the quantized model and the baseline's predictions; write metrics/evaluate.json, tables and predictions."""
    from fairquant.artifacts import write_json
    from fairquant.cost.summary import summarise_bits
    from fairquant.data.store import Store
    from fairquant.devices import resolve_device, seed_everything
    from fairquant.evaluate.audit import groupings
    from fairquant.evaluate.gates import check_gates
    from fairquant.evaluate.report import evaluation, write_plots
    from fairquant.models.build import build
    from fairquant.models.describe import describe
    from fairquant.predictions import Predictions
    from fairquant.quantize.state import load_quantized
    from fairquant.train.predict import predict_splits

    store, device, section = Store.open(), resolve_device(config.device), config.evaluate
    audited = groupings(section.audit, store.columns)
    seed_everything(0)
    model, spec, bits = load_quantized("models/quantized.safetensors")
    after = predict_splits(
        model, store, ("val", "test"), batch_size=section.batch_size, device=device, precision=config.precision
    )
    before = Predictions.load("models/baseline_predictions.safetensors")
    metrics = evaluation(before, after, section=section, groupings=audited)
    cost = summarise_bits(bits, describe(build(spec, seed=0), spec))
    metrics["cost"] = {**cost["size"], "avg_bits": cost["avg_bits"], "gbops": cost["gbops"]}
    metrics["gates"] = check_gates(metrics, config.gates)
    after.save("models/quantized_predictions.safetensors")
    write_plots("plots/evaluate", metrics)
    write_json("metrics/evaluate.json", metrics)


if __name__ == "__main__":
    stage.run(main, reads=("device", "precision", "evaluate", "gates"))

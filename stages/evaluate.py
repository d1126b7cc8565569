"""evaluate: compare the quantized with the full-precision classifier per group, on the same samples."""

from fairquant import stage
from fairquant.config import Config
from fairquant.parallel.launch import start


def main(config: Config) -> None:
    """Read the quantized model and the baseline's predictions; write metrics/evaluate.json, tables and predictions."""
    from fairquant.artifacts import write_json
    from fairquant.cost.summary import summarise_bits
    from fairquant.data.store import Store
    from fairquant.devices import resolve_device, seed_everything
    from fairquant.evaluate.audit import groupings
    from fairquant.evaluate.gates import check_gates
    from fairquant.evaluate.report import evaluation, write_plots
    from fairquant.models.describe import describe
    from fairquant.models.fold import is_folded
    from fairquant.parallel.collectives import is_first
    from fairquant.predictions import Predictions
    from fairquant.quantize.activate import input_bits
    from fairquant.quantize.folded import skeleton
    from fairquant.quantize.state import load_quantized
    from fairquant.train.predict import predict_splits

    store, device, section = Store.open(), resolve_device(config.device), config.evaluate
    audited = groupings(section.audit, store.columns)
    seed_everything(0)
    model, spec, bits = load_quantized("models/quantized.safetensors")
    after = predict_splits(model, store, batch_size=section.batch_size, device=device, precision=config.precision)
    if not is_first():
        return
    before = Predictions.load("models/baseline_predictions.safetensors")
    methods = {name: config.options("postprocess", name) for name in section.postprocess}
    metrics = evaluation(before, after, section=section, groupings=audited, postprocess=methods)
    plain = describe(skeleton(spec, folded=is_folded(model)), spec)
    cost = summarise_bits(bits, plain, activation_bits=input_bits(model))
    metrics["cost"] = {**cost.pop("size"), **{name: value for name, value in cost.items() if name != "share"}}
    metrics["gates"] = check_gates(metrics, config.gates)
    after.save("models/quantized_predictions.safetensors")
    write_plots("plots/evaluate", metrics)
    write_json("metrics/evaluate.json", metrics)


if __name__ == "__main__":
    stage.run(main, reads=("device", "precision", "parallel", "evaluate", "gates"), start=start)

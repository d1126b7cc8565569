"""assign: spend the bit budget. Importance maps → bit-widths, their metrics and per-layer tables."""

from fairquant import stage
from fairquant.allocate.assign import assign_bits
from fairquant.artifacts import read_json, write_json, write_text
from fairquant.config import Config
from fairquant.cost.summary import bit_distribution, layer_shares, summarise_bits, to_csv
from fairquant.importance.maps import ImportanceMaps


def main(config: Config) -> None:
    """Read models/importance.safetensors and models/pretrained.json; write models/bits.safetensors and its reports."""
    model_info = read_json("models/pretrained.json")
    bits = assign_bits(ImportanceMaps.load("models/importance.safetensors"), model_info, config)
    bits.save("models/bits.safetensors")
    write_json("metrics/bits.json", summarise_bits(bits, model_info))
    write_text("plots/bits/layers.csv", to_csv(layer_shares(bits)))
    write_text("plots/bits/bit_distribution.csv", to_csv(bit_distribution(bits, model_info)))


if __name__ == "__main__":
    stage.run(main, reads=("reducer", "allocator", "granularity", "assign"))

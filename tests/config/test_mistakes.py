"""Every kind of mistake in params.yaml: one line that names the key, the value received and what is allowed."""

from __future__ import annotations

import pytest
import yaml

from fairquant import plugins
from fairquant.config.load import check_groups, load_config, parse_config
from fairquant.config.schema import TrainSection
from fairquant.errors import ConfigError

REDUCERS = " | ".join(plugins.names("reducer"))
METRICS = " | ".join(plugins.names("importance"))
TRAIN_KEYS = " | ".join(sorted(TrainSection.model_fields))
SUBSET = "a fraction in (0, 1] or a whole number above 1"
WIDTH = "a bit-width: a whole number in [0, 16], or 32"

MISTAKES = {
    # unknown keys, at every depth
    "pretrain: {lrr: 1}": f"pretrain.lrr: unknown key (did you mean 'lr'?), got 1; allowed: {TRAIN_KEYS}",
    "report: {xyz: 1}": "report.xyz: unknown key, got 1; allowed: title",
    "assign: {protect: {layer: [fc]}}": "assign.protect.layer: unknown key (did you mean 'layers'?), got ['fc']; "
    "allowed: bits | layers | sensitive | sensitive_bits",
    "assign: {reducers: {cvr: {alpha: 1}}}": "assign.reducers.cvr: unknown key (did you mean 'cvar'?), "
    f"got {{'alpha': 1}}; allowed: {REDUCERS}",
    "assign: {reducers: {cvar: {alfa: 1}}}": "assign.reducers.cvar.alfa: unknown key (did you mean 'alpha'?), got 1; "
    "allowed: alpha",
    "importance: {metrics: {hawk: {samples: 1}}}": "importance.metrics.hawk: unknown key (did you mean 'hawq'?), "
    f"got {{'samples': 1}}; allowed: {METRICS}",
    "importance: {metrics: {hawq: {sample: 1}}}": "importance.metrics.hawq.sample: unknown key (did you mean "
    "'samples'?), got 1; allowed: samples",
    "importance: {metrics: {grape: {samples: 1}}}": "importance.metrics.grape.samples: unknown key, got 1; allowed: ",
    "pretrain: {3: 1}": "pretrain.3: got 3; allowed: text as key",
    # plug-in names and choices
    "reducer: no_such": f"reducer: got 'no_such'; allowed: {REDUCERS}",
    "reducer: null": f"reducer: got null; allowed: {REDUCERS}",
    "reducer: [max]": f"reducer: got ['max']; allowed: {REDUCERS}",
    "importance_metric: hawk": f"importance_metric: got 'hawk'; allowed: {METRICS}",
    "allocator: optimall": "allocator: got 'optimall'; allowed: " + " | ".join(plugins.names("allocator")),
    "device: gpu": "device: got 'gpu'; allowed: auto | cpu | cuda | mps",
    "precision: fp16": "precision: got 'fp16'; allowed: fp32 | bf16",
    # types
    "pretrain: {lr: abc}": "pretrain.lr: got 'abc'; allowed: a number in (0, inf)",
    "pretrain: {lr: true}": "pretrain.lr: got true; allowed: a number, not true/false",
    "seed: false": "seed: got false; allowed: a number, not true/false",
    "pretrain: {epochs: 2.5}": "pretrain.epochs: got 2.5; allowed: a whole number in [0, inf)",
    "pretrain: {epochs: null}": "pretrain.epochs: got null; allowed: a whole number in [0, inf)",
    "importance: {samples_per_group: x}": "importance.samples_per_group: got 'x'; allowed: a whole number in [1, inf)",
    "importance: {metrics: {hawq: {samples: 1.5}}}": "importance.metrics.hawq.samples: got 1.5; allowed: a whole "
    "number in [1, 10000]",
    "importance: {metrics: {hawq: {samples: true}}}": "importance.metrics.hawq.samples: got true; allowed: a number, "
    "not true/false",
    "importance: {metrics: {hawq: 3}}": "importance.metrics.hawq: got 3; allowed: a mapping of options",
    "debug: 3": "debug: got 3; allowed: true | false",
    "data: {path: 3}": "data.path: got 3; allowed: text",
    "data: {group: [1]}": "data.group.0: got 1; allowed: text",
    "data: {group: []}": "data.group: got []; allowed: one or several group columns, or null for the default",
    "evaluate: {audit: [[]]}": "evaluate.audit: got [[]]; allowed: each grouping once, of one or several different "
    "columns",
    "evaluate: {audit: [sex, [sex]]}": "evaluate.audit: got ['sex', ['sex']]; allowed: each grouping once, of one or "
    "several different columns",
    "evaluate: {audit: [[sex, sex]]}": "evaluate.audit: got [['sex', 'sex']]; allowed: each grouping once, of one or "
    "several different columns",
    "evaluate: {audit: 3}": "evaluate.audit: got 3; allowed: a list of columns of the samples table, or of lists of "
    "columns for intersections",
    "evaluate: {audit: [3]}": "evaluate.audit.0: got 3; allowed: a column, or a list of columns",
    "evaluate: {min_group_size: 0}": "evaluate.min_group_size: got 0; allowed: a number in [1, inf)",
    "evaluate: {significance: 1}": "evaluate.significance: got 1; allowed: a number in (0, 1)",
    "evaluate: {bootstrap: {resamples: -1}}": "evaluate.bootstrap.resamples: got -1; allowed: a number in [0, 100000]",
    "evaluate: {bootstrap: {confidence: 95}}": "evaluate.bootstrap.confidence: got 95; allowed: a number in (0.5, 1)",
    "gates: {gap: 5}": "gates.gap: got 5; allowed: a number in [0, 1]",
    "gates: {size_mb: 0}": "gates.size_mb: got 0; allowed: a number in (0, inf)",
    "gates: {harmed_groups: 0.5}": "gates.harmed_groups: got 0.5; allowed: a whole number in [0, inf)",
    "gates: {worst: 0.1}": "gates.worst: unknown key, got 0.1; allowed: gap | gap_increase | group_drop | "
    "harmed_groups | overall_drop | size_mb | worst_group_drop",
    "evaluate: {positive_class: 3}": "evaluate.positive_class: got 3; allowed: a class name, or null for the second "
    "of two classes",
    "pretrain: 5": f"pretrain: got 5; allowed: a section with the keys {TRAIN_KEYS}",
    "pretrain: null": f"pretrain: got null; allowed: a section with the keys {TRAIN_KEYS}",
    "assign: {reducers: {cvar: 3}}": "assign.reducers.cvar: got 3; allowed: a mapping of options",
    "datasets: 3": "datasets: got 3; allowed: a mapping of options",
    # out of range
    "seed: -1": "seed: got -1; allowed: a number in [0, 4294967296)",
    "pretrain: {lr: 0}": "pretrain.lr: got 0; allowed: a number in (0, inf)",
    "pretrain: {lr: .nan}": "pretrain.lr: got nan; allowed: a number in (0, inf)",
    "pretrain: {lr: .inf}": "pretrain.lr: got inf; allowed: a number in (0, inf)",
    "quantize: {percentile: 101}": "quantize.percentile: got 101; allowed: a number in (50, 100]",
    "assign: {reducers: {cvar: {alpha: 2}}}": "assign.reducers.cvar.alpha: got 2; allowed: a number in [0, 1]",
    "importance: {metrics: {hawq: {samples: 0}}}": "importance.metrics.hawq.samples: got 0; allowed: a number in "
    "[1, 10000]",
    "assign: {bits: [2, 4, 20]}": f"assign.bits.2: got 20; allowed: {WIDTH}",
    "assign: {bits: [2, 4, 33]}": f"assign.bits.2: got 33; allowed: {WIDTH}",
    "assign: {bits: [2, 4, x]}": f"assign.bits.2: got 'x'; allowed: {WIDTH}",
    "assign: {levels: [-0.2, 0.8, 0.4]}": "assign.levels.0: got -0.2; allowed: a share in [0, 1]",
    "data: {train_subset: 0}": "data.train_subset: got 0; allowed: " + SUBSET,
    "data: {train_subset: most}": "data.train_subset: got 'most'; allowed: " + SUBSET,
    "data: {test_subset: 1.5}": "data.test_subset: got 1.5; allowed: " + SUBSET,
    "datasets: {fairface: {margin: 0.5}}": "datasets.fairface.margin: got '0.5'; allowed: 0.25 | 1.25",
    "datasets: {fairface: {source: parquet}}": "datasets.fairface.source: got 'parquet'; "
    "allowed: auto | csv | huggingface",
    "datasets: {utkface: {source: csv}}": "datasets.utkface.source: got 'csv'; allowed: auto | images | table",
    "datasets: {utkface: {age_bands: [30, 20]}}": "datasets.utkface.age_bands: got [30, 20]; "
    "allowed: ages in rising order, each in [1, 116]",
    "datasets: {celeba: {use_partition: 2}}": "datasets.celeba.use_partition: got 2; allowed: true | false",
    "datasets: {mnist: {path: x}}": "datasets.mnist.path: unknown key, got 'x'; allowed: ",
    "parallel: {devices: 0}": "parallel.devices: got 0; allowed: a whole number in [1, 1024], or auto (every GPU of a "
    "node; one process on the CPU)",
    "parallel: {strategy: fsdp}": "parallel.strategy: got 'fsdp'; allowed: ddp | ddp_bf16",
    # impossible combinations
    "{device: mps, parallel: {devices: 2, nodes: 3}}": "device: got 'mps' for 6 processes (parallel.devices x "
    "parallel.nodes), which cannot exchange numbers there; allowed: auto | cpu | cuda",
    "{parallel: {devices: 8}, pretrain: {batch_size: 7}}": "pretrain.batch_size: got 7 for 8 processes "
    "(parallel.devices x parallel.nodes) with parallel.batch_norm global; allowed: at least 8, the rows of all "
    "together",
    "{parallel: {devices: 8, batch_norm: local}, quantize: {batch_size: 15}}": "quantize.batch_size: got 15 for 8 "
    "processes (parallel.devices x parallel.nodes) with parallel.batch_norm local; allowed: at least 16, the rows of "
    "all together",
    "assign: {levels: [0.5, 0.4, 0.2]}": "assign.levels: got [0.5, 0.4, 0.2], sum 1.1; allowed: shares that sum to 1",
    "assign: {bits: [2, 4]}": "assign.levels: got 3 levels for 2 bits ([0.2, 0.4, 0.4] for [2, 4]); "
    "allowed: one level per bit-width",
    "assign: {bits: [4, 4, 8]}": "assign.bits: got [4, 4, 8]; allowed: each bit-width once",
    "data: {val_fraction: 0.6, test_fraction: 0.5}": "data.val_fraction + data.test_fraction: got 0.6 + 0.5; "
    "allowed: a sum below 1",
    "{quant_mode: kmeans, granularity: per_param}": "granularity: got 'per_param' with quant_mode kmeans; allowed: "
    "per_tensor | per_channel (a codebook for every single weight is not a format)",
    "{quant_mode: kmeans, assign: {bits: [2, 4, 12]}}": "assign.bits: got 12 with quant_mode kmeans; allowed: 0 to 8, "
    "or 32 (a codebook of 8 bits has 256 entries)",
    "{quant_mode: kmeans, allocator: uniform, assign: {uniform_bits: 16}}": "assign.uniform_bits: got 16 with "
    "quant_mode kmeans; allowed: 0 to 8, or 32 (a codebook of 8 bits has 256 entries)",
    "{quant_mode: kmeans, assign: {protect: {layers: [fc], bits: 16}}}": "assign.protect.bits: got 16 with quant_mode "
    "kmeans; allowed: 0 to 8, or 32 (a codebook of 8 bits has 256 entries)",
    "{quant_mode: kmeans, assign: {protect: {sensitive: 1, sensitive_bits: 9}}}": "assign.protect.sensitive_bits: got "
    "9 with quant_mode kmeans; allowed: 0 to 8, or 32 (a codebook of 8 bits has 256 entries)",
    "{quant_mode: kmeans, allocator: optimal, reducer: max, budget: {size_mb: 5}}": "budget.size_mb: got 5 with "
    "quant_mode kmeans, whose codebooks it does not count; allowed: null (avg_bits and gbops hold)",
    "{quant_mode: baq_learnable, granularity: per_param}": "granularity: got 'per_param' with quant_mode "
    "baq_learnable; allowed: per_tensor | per_channel (a learned width for every single weight is not a format)",
    "quantize: {baq: {bit_min: 8, bit_max: 4}}": "quantize.baq.bit_min: got 8 above bit_max 4; "
    "allowed: at most bit_max",
    "quantize: {baq: {bit_min: 1}}": "quantize.baq.bit_min: got 1; allowed: a number in [2, 16]",
    "quantize: {baq: {target_bits: 9}}": "quantize.baq.target_bits: got 9; allowed: null, or a number from bit_min 2 "
    "to bit_max 8",
    "{quant_mode: baq_learnable, quantize: {scale: mse}}": "quantize.scale: got 'mse' with quant_mode baq_learnable, "
    "which sets its own step sizes; allowed: absmax",
    "{quant_mode: baq_learnable, assign: {bits: [2, 4, 16]}}": "assign.bits: got 16 with quant_mode baq_learnable; "
    "allowed: from quantize.baq.bit_min 2 to bit_max 8",
    "{quant_mode: baq_learnable, allocator: uniform, assign: {uniform_bits: 1}}": "assign.uniform_bits: got 1 with "
    "quant_mode baq_learnable; allowed: from quantize.baq.bit_min 2 to bit_max 8",
    "{quant_mode: iterative_qat, quantize: {epochs: 2, iterative: {rounds: 3}}}": "quantize.iterative.rounds: got 3 "
    "for 2 epochs; allowed: at most one round per epoch (quantize.epochs)",
    "{evaluate: {parity: false}, gates: {gap: 0.05}}": "gates.gap: got 0.05 with evaluate.parity false; allowed: null",
    "{evaluate: {parity: false}, gates: {gap_increase: 0}}": "gates.gap_increase: got 0 with evaluate.parity false; "
    "allowed: null",
    # allocator optimal and step sizes weighed by importance
    "budget: {avg_bits: 33}": "budget.avg_bits: got 33; allowed: a number in [0, 32]",
    "budget: {avg_bits: -1}": "budget.avg_bits: got -1; allowed: a number in [0, 32]",
    "budget: {size_mb: 0}": "budget.size_mb: got 0; allowed: a number in (0, inf)",
    "budget: {gbops: x}": "budget.gbops: got 'x'; allowed: a number in (0, inf)",
    "budget: {bits: 4}": "budget.bits: unknown key (did you mean 'avg_bits'?), got 4; "
    "allowed: avg_bits | gbops | size_mb",
    "{allocator: optimal, budget: {avg_bits: null}}": "budget: got null for avg_bits, size_mb, gbops with allocator "
    "optimal; allowed: at least one limit",
    "{allocator: optimal, reducer: subtractive, assign: {reducers: {subtractive: {unprivileged: a, privileged: b}}}}": (
        "reducer: got 'subtractive' with allocator optimal; allowed: balanced | cvar | max | mean"
    ),
    "assign: {optimal: {bits: []}}": "assign.optimal.bits: got []; allowed: a list of bit-widths",
    "assign: {optimal: {bits: [2, 17]}}": f"assign.optimal.bits.1: got 17; allowed: {WIDTH}",
    "assign: {optimal: {bits: [2, 4, 2]}}": "assign.optimal.bits: got [2, 4, 2]; allowed: each bit-width once",
    "assign: {optimal: {gap: 0}}": "assign.optimal.gap: got 0; allowed: a number in [1e-06, 0.1]",
    "assign: {optimal: {couple: 3}}": "assign.optimal.couple: got 3; allowed: a list of lists of layer name patterns",
    "assign: {optimal: {couple: [3]}}": "assign.optimal.couple.0: got 3; allowed: a list of layer name patterns",
    "assign: {explain: {budgets: [40]}}": "assign.explain.budgets.0: got 40; allowed: average bits in [0, 32]",
    "assign: {explain: {budgets: 4}}": "assign.explain.budgets: got 4; allowed: a list of average bits",
    "assign: {explain: {measure: 2}}": "assign.explain.measure: got 2; allowed: true | false",
    "quantize: {correction_images: -1}": "quantize.correction_images: got -1; allowed: a number in [0, inf)",
    "quantize: {correction_images: 1}": "quantize.correction_images: got 1; allowed: 0 (off), or 2 and more (a "
    "variance needs two)",
    "quantize: {correction_images: true}": "quantize.correction_images: got true; allowed: a number, not true/false",
    **{
        f"{{quant_mode: {mode}, quantize: {{scale: weighted}}}}": f"quantize.scale: got 'weighted' with quant_mode "
        f"{mode}, whose widths are not those of assign; allowed: absmax | lsq | mse | percentile"
        for mode in ("iterative_qat", "uniform")
    },
    "{quant_mode: baq_learnable, quantize: {scale: weighted}}": "quantize.scale: got 'weighted' with quant_mode "
    "baq_learnable, which sets its own step sizes; allowed: absmax",
    "{quant_mode: baq_learnable, allocator: optimal, reducer: max}": "assign.optimal.bits: got 0 with quant_mode "
    "baq_learnable; allowed: from quantize.baq.bit_min 2 to bit_max 8",
    "reducer: subtractive": "assign.reducers.subtractive.unprivileged: got null; allowed: a group name "
    "(reducer: subtractive needs both)",
    "model: {weights: /tmp/x.pt}": "model.weights: got '/tmp/x.pt'; allowed: none | imagenet | a file under "
    "data/weights/ (copy it there, so that it is tracked)",
}


@pytest.mark.parametrize("written", MISTAKES)
def test_mistake_is_one_line(written):
    with pytest.raises(ConfigError) as error:
        parse_config(yaml.safe_load(written))
    assert str(error.value) == f"params.yaml: {MISTAKES[written]}"


def test_several_mistakes_are_reported_together():
    written = "seed: -1\nreducr: max\nassign: {reducers: {cvar: {alpha: 2}}}\npretrain: {lr: x, epochs: true}\n"
    with pytest.raises(ConfigError) as error:
        parse_config(yaml.safe_load(written))
    text = str(error.value)
    assert "\n" not in text
    assert text.count("; allowed: ") == 5
    for key in ("seed", "reducr", "assign.reducers.cvar.alpha", "pretrain.lr", "pretrain.epochs"):
        assert f"{key}: " in text


@pytest.mark.parametrize(("raw", "got"), [(None, "null"), ([1], "[1]"), ("text", "'text'"), (True, "true")])
def test_params_that_are_no_mapping(raw, got):
    with pytest.raises(ConfigError) as error:
        parse_config(raw, source="p.yaml")
    assert str(error.value) == f"p.yaml: got {got}; allowed: a mapping of sections"


def test_long_values_are_cut():
    with pytest.raises(ConfigError) as error:
        parse_config({"seed": "x" * 500})
    assert len(str(error.value)) < 200


class TestFiles:
    """params.yaml and meta.json themselves."""

    def refused(self, *arguments, **options):
        with pytest.raises(ConfigError) as error:
            load_config(*arguments, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    def test_missing(self, tmp_path):
        text = self.refused(tmp_path / "params.yaml")
        assert text == f"{tmp_path}/params.yaml: not found; run from the folder that holds params.yaml"

    def test_a_folder(self, tmp_path):
        assert self.refused(tmp_path) == f"{tmp_path}: not readable (Is a directory); allowed: a YAML file"

    @pytest.mark.parametrize("data", [b"a: [1\nb: {", b"\xff\xfe\xfa", b"a: 1\na b\n"])
    def test_not_yaml(self, tmp_path, data):
        (tmp_path / "params.yaml").write_bytes(data)
        assert self.refused(tmp_path / "params.yaml").startswith(f"{tmp_path}/params.yaml: not valid YAML: ")

    @pytest.mark.parametrize("meta", ["{", "[]", '{"groups": 3}', "{}"])
    def test_broken_meta(self, tmp_path, meta):
        (tmp_path / "params.yaml").write_text("seed: 1\n")
        (tmp_path / "meta.json").write_text(meta)
        text = self.refused(tmp_path / "params.yaml", meta=tmp_path / "meta.json")
        assert text == f"{tmp_path}/meta.json: not a prepared data set's meta.json; allowed: what prepare writes"


SUBTRACTIVE = "reducer: subtractive\nassign: {reducers: {subtractive: {unprivileged: dark, privileged: light}}}\n"


class TestGroups:
    """Reducers that need certain groups are refused as soon as the groups are known."""

    def test_three_groups(self, tmp_path):
        (tmp_path / "params.yaml").write_text(SUBTRACTIVE)
        (tmp_path / "meta.json").write_text('{"groups": ["dark", "light", "other"]}')
        with pytest.raises(ConfigError) as error:
            load_config(tmp_path / "params.yaml", meta=tmp_path / "meta.json")
        assert str(error.value) == (
            f"{tmp_path}/params.yaml: reducer: got 'subtractive' with 3 groups (dark, light, other); "
            "allowed: exactly two groups"
        )

    def test_a_group_that_is_not_there(self):
        with pytest.raises(ConfigError, match="unprivileged: got 'dark'; allowed: one of the groups a | light"):
            check_groups(parse_config(yaml.safe_load(SUBTRACTIVE)), ["a", "light"])

    def test_the_two_groups(self, tmp_path):
        (tmp_path / "params.yaml").write_text(SUBTRACTIVE)
        (tmp_path / "meta.json").write_text('{"groups": ["light", "dark"]}')
        assert load_config(tmp_path / "params.yaml", meta=tmp_path / "meta.json").reducer == "subtractive"

    def test_other_reducers_take_any_groups(self):
        check_groups(parse_config({"reducer": "max"}), ["a"])

    def test_classes_instead_of_groups_are_not_checked_here(self):
        config = parse_config(yaml.safe_load(SUBTRACTIVE + "importance: {by: class}\n"))
        check_groups(config, ["a", "b", "c"])

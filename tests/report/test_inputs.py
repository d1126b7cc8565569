"""Reading a finished run's results."""

from __future__ import annotations

import pytest

from fairquant.config import Config
from fairquant.errors import ArtifactError
from fairquant.report.inputs import plain_params, read_csv, read_inputs


def test_everything_is_read(inputs):
    assert inputs.title == "FairQuant report"
    assert inputs.metrics["pretrain"]["best_epoch"] == 2
    assert [row["layer"] for row in inputs.layers] == ["conv1", "layer1.0.conv1", "fc"]
    assert inputs.distribution[1]["n_2bit"] == "8"
    assert [len(rows) for rows in inputs.curves.values()] == [2, 0]
    assert inputs.logs["quantize"] == "nothing was trained\n"


@pytest.mark.parametrize("name", ["metrics/bits.json", "plots/bits/layers.csv", "plots/pretrain/training.log"])
def test_a_missing_file_is_named(run_folder, name):
    (run_folder / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name}: not found; run the stage that writes it"):
        read_inputs({}, run_folder)


@pytest.mark.parametrize("row", ["1", "1,2,3"])
def test_a_row_of_another_length_is_named(tmp_path, row):
    (tmp_path / "t.csv").write_text(f"a,b\n1,2\n{row}\n")
    with pytest.raises(ArtifactError, match="t.csv: row 2: got another number of fields"):
        read_csv(tmp_path / "t.csv")


def test_params_are_plain_values():
    params = plain_params(Config(seed=3))
    assert params["seed"] == 3
    assert params["assign"]["bits"] == [2, 4, 8]
    assert set(params) == set(Config.model_fields)

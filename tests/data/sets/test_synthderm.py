from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fairquant.data.derm import ITA_BANDS
from fairquant.data.raw import DataRequest
from fairquant.data.sets.synthderm import Options, load
from fairquant.errors import DataError


def request(**changes):
    return DataRequest(Path("none"), **{"image_size": 16, **changes})


def test_the_label_is_decided_by_the_lesion_alone():
    raw = load(request(), Options(samples=2000))
    for sample in raw.samples:
        shape = [float(sample.attributes[name]) for name in ("border", "colour", "asymmetry")]
        assert (sum(shape) / 3 > 0.5) == (sample.label == "malignant")
        assert all(0 <= value <= 1 for value in shape)


def test_shares_of_tones_and_labels():
    raw = load(request(), Options(samples=5000))
    assert Counter(sample.groups[0] for sample in raw.samples) == {
        "I": 1000,
        "II": 1250,
        "III": 1000,
        "IV": 750,
        "V": 600,
        "VI": 400,
    }
    cells = Counter((sample.groups[0], sample.label) for sample in raw.samples)
    assert cells["VI", "malignant"] == 160 and cells["I", "malignant"] == 400
    assert raw.classes == ("benign", "malignant") and raw.group_order["tone"] == tuple(ITA_BANDS)


def test_the_tone_agrees_with_its_ita_band():
    for sample in load(request(), Options(samples=300)).samples:
        low, high = ITA_BANDS[sample.attributes["tone"]]
        assert low - 0.01 <= float(sample.attributes["ita"]) <= high + 0.01


def test_the_data_seed_decides():
    def pixels(seed):
        return np.stack([sample.image() for sample in load(request(seed=seed), Options(samples=60)).samples])

    assert np.array_equal(pixels(0), pixels(0))
    assert not np.array_equal(pixels(0), pixels(1))


def test_two_groups():
    raw = load(request(), Options(samples=100, groups="binary_groups"))
    assert raw.group_order["tone"] == ("I-III", "IV-VI")
    for sample in raw.samples:
        assert sample.groups == ("IV-VI" if sample.attributes["tone"] in ("IV", "V", "VI") else "I-III",)


def test_four_classes_in_equal_shares():
    raw = load(request(), Options(samples=400, classes="multiclass"))
    assert raw.classes == ("nevus", "dysplastic", "keratosis", "melanoma")
    counts = Counter(sample.label for sample in raw.samples)
    assert all(abs(counts[name] - 100) <= 6 for name in raw.classes)
    nevus = [sample for sample in raw.samples if sample.label == "nevus"]
    assert max(float(sample.attributes["border"]) for sample in nevus) < 0.4


def test_group_shares_are_kept():
    raw = load(request(), Options(samples=100, group_shares=(0.5, 0.1, 0.1, 0.1, 0.1, 0.1)))
    assert Counter(sample.groups[0] for sample in raw.samples)["I"] == 50


def test_group_shares_must_sum_to_one():
    with pytest.raises(ValidationError, match="six shares that sum to 1"):
        Options(group_shares=(0.2, 0.2, 0.2, 0.2, 0.1, 0.2))
    with pytest.raises(ValidationError):
        Options(group_shares=(0.5, 0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "dx"}, "data.label: got 'dx'; allowed: diagnosis"),
        ({"group": ("sex",)}, "data.group: got 'sex'; allowed: tone"),
        ({"split_by": "tone"}, "data.split_by: got 'tone'; allowed: null for synthderm"),
    ],
)
def test_columns_it_does_not_have(changes, message):
    with pytest.raises(DataError, match=message):
        load(request(**changes), Options())

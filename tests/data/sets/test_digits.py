from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fairquant.data.raw import DataRequest
from fairquant.data.sets.digits import Options, load
from fairquant.errors import DataError


def test_all_digits_with_their_class_as_group():
    raw = load(DataRequest(Path("none")), Options())
    bunch = load_digits()
    assert len(raw.samples) == 1797 and raw.classes == tuple("0123456789") == raw.group_order["digit"]
    for sample, image, target in zip(raw.samples, bunch.images, bunch.target, strict=True):
        assert sample.label == str(target) and sample.groups == (sample.label,) and sample.split is None
        pixels = sample.image()
        assert pixels.dtype == np.uint8 and np.array_equal(np.rint(pixels / 255 * 16), image)


def test_columns_it_does_not_have():
    with pytest.raises(DataError, match="data.group: got 'sex'; allowed: digit"):
        load(DataRequest(Path("none"), group=("sex",)), Options())
    with pytest.raises(DataError, match="data.split_by: got 'writer'; allowed: null for digits"):
        load(DataRequest(Path("none"), split_by="writer"), Options())

"""What every data set plug-in must do, found by itself: a new file in sets/ is tested without a change here."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fairquant import plugins
from fairquant.config import Section
from fairquant.data.raw import DataRequest, natural_order
from fairquant.errors import DataError

NAMES = plugins.names("dataset")
SELF_CONTAINED = ("digits", "synthderm")


@pytest.mark.parametrize("name", NAMES)
def test_it_has_options_with_defaults_and_a_documented_load(name):
    module = plugins.load("dataset", name)
    assert issubclass(module.Options, Section) and module.Options() == module.Options()
    assert module.__doc__ and module.load.__doc__


def test_none_imports_torch_or_pandas():
    code = "; ".join(f"import fairquant.data.sets.{name}" for name in NAMES)
    code += "; import fairquant.data.prepare, fairquant.data.store, sys; print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SELF_CONTAINED])
def test_absent_files_are_one_line_naming_the_layout(name, tmp_path):
    module = plugins.load("dataset", name)
    with pytest.raises(DataError, match="expected .*") as caught:
        module.load(DataRequest(tmp_path / "none"), module.Options())
    assert "\n" not in str(caught.value) and str(tmp_path / "none") in str(caught.value)


@pytest.mark.parametrize("name", SELF_CONTAINED)
def test_samples_are_well_formed_and_picklable(name, tmp_path):
    module = plugins.load("dataset", name)
    raw = module.load(DataRequest(tmp_path, image_size=16), module.Options())
    again = module.load(DataRequest(tmp_path, image_size=16), module.Options())
    assert len({sample.id for sample in raw.samples}) == len(raw.samples)
    assert [sample.row for sample in raw.samples] == list(range(1, len(raw.samples) + 1))
    assert set(natural_order([sample.label for sample in raw.samples])) == set(raw.classes)
    for one, two in list(zip(raw.samples, again.samples, strict=True))[:20]:
        image = pickle.loads(pickle.dumps(one.image))()
        assert np.array_equal(image, two.image()) and image.dtype == np.uint8
        assert Image.fromarray(image).size[0] in (8, 16)
        assert (one.label, one.groups, one.id) == (two.label, two.groups, two.id)
        assert len(one.groups) == len(raw.group_columns)

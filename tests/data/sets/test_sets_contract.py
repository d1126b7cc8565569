"""What every data set plug-in must do, found by itself: a new file in sets/ is tested without a change here."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fairquant import plugins
from fairquant.config import Section
from fairquant.data.checks import check_rows
from fairquant.data.decode import decode
from fairquant.data.raw import DataRequest, natural_order
from fairquant.data.web import Final
from fairquant.errors import DataError
from tests.data.sets import test_celeba, test_cifar10, test_fairface, test_mnist, test_utkface

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


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SELF_CONTAINED])
def test_without_a_network_absent_files_are_one_line_naming_the_folder_and_the_layout(name, tmp_path, monkeypatch):
    def refuse(url, headers, *, timeout):
        raise Final("no network")

    monkeypatch.setattr("fairquant.data.download.open_address", refuse)
    module = plugins.load("dataset", name)
    with pytest.raises(DataError, match="expected .*") as caught:
        module.load(DataRequest(tmp_path / "none", download=True), module.Options())
    assert "\n" not in str(caught.value) and str(tmp_path / "none") in str(caught.value)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


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


WRITERS = {
    "celeba": lambda folder: test_celeba.write(folder, n=8),
    "celeba zipped": lambda folder: test_celeba.write(folder, n=8, zipped=True),
    "utkface": lambda folder: test_utkface.write_images(folder, n=8),
    "utkface table": lambda folder: test_utkface.write_table(folder, n=8),
    "cifar10": lambda folder: test_cifar10.write(folder, test_cifar10.FORMS["cifar-10-batches-bin"]),
    "cifar10 pickled": lambda folder: test_cifar10.write(folder, test_cifar10.FORMS["cifar-10-batches-py"]),
    "mnist": lambda folder: test_mnist.write(folder, "t10k", 8),
    "fairface": lambda folder: test_fairface.layout(folder),
    "fairface parquet": lambda folder: test_fairface.write_hub(folder),
    "fairface saved": lambda folder: test_fairface.write_saved(folder),
}
"""Write a data set in one of its published layouts."""


@pytest.mark.parametrize("layout", WRITERS)
def test_samples_of_published_layouts_are_well_formed_and_picklable(layout, tmp_path):
    (tmp_path / "raw").mkdir()
    WRITERS[layout](tmp_path / "raw")
    module = plugins.load("dataset", layout.split()[0])
    raw, again = (module.load(DataRequest(tmp_path / "raw"), module.Options()) for _ in range(2))
    assert list(raw.problems) == [] and list(check_rows(raw)) == []
    assert len({sample.id for sample in raw.samples}) == len(raw.samples)
    for one, two in list(zip(raw.samples, again.samples, strict=True))[:8]:
        assert np.array_equal(decode(pickle.loads(pickle.dumps(one.image)), 8), decode(two.image, 8))
        assert (one.label, one.groups, one.id, one.row) == (two.label, two.groups, two.id, two.row)
        assert one.label in raw.classes and len(one.groups) == len(raw.group_columns)
        assert all(isinstance(value, str) for value in one.attributes.values())


@pytest.mark.parametrize("layout", WRITERS)
def test_what_no_data_set_has_is_one_line(layout, tmp_path):
    (tmp_path / "raw").mkdir()
    WRITERS[layout](tmp_path / "raw")
    module = plugins.load("dataset", layout.split()[0])
    for key, value in (("label", "nothing"), ("group", ("nothing",)), ("group", ()), ("split_by", "nothing")):
        with pytest.raises(DataError, match=rf"data.{key}: got .*; allowed: ") as caught:
            module.load(DataRequest(tmp_path / "raw", **{key: value}), module.Options())
        assert "\n" not in str(caught.value)

import numpy as np
import pytest

from fairquant import artifacts
from fairquant.errors import ArtifactError, UserError
from fairquant.importance.maps import ImportanceMaps

GROUPS = ("female × <60", "male.old")


def maps(**change):
    random = np.random.default_rng(0)
    layers = {
        "stem.conv": random.random((2, 4, 3, 3, 3), dtype=np.float32),
        "a.fc": random.random((2, 5, 4), dtype=np.float32),
    }
    fields = {"groups": GROUPS, "counts": (7, 9), "layers": layers, "meta": {"metric": "grape"}}
    return ImportanceMaps(**{**fields, **change})


def test_round_trip_keeps_names_order_and_values(tmp_path):
    saved = maps()
    saved.save(tmp_path / "importance.safetensors")
    loaded = ImportanceMaps.load(tmp_path / "importance.safetensors")
    assert (loaded.groups, loaded.counts, loaded.meta) == (GROUPS, (7, 9), {"metric": "grape"})
    assert list(loaded.layers) == ["stem.conv", "a.fc"]
    assert all(np.array_equal(loaded.layers[name], saved.layers[name]) for name in saved.layers)


def test_same_maps_same_bytes(tmp_path):
    maps().save(tmp_path / "a.safetensors")
    maps().save(tmp_path / "b" / "c.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b" / "c.safetensors").read_bytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_name_layer_and_group(value):
    array = np.ones((2, 3, 4), np.float32)
    array[1, 0, 0] = value
    with pytest.raises(UserError, match="^importance: layer 'fc', group 'male.old': got NaN or infinite values"):
        maps(layers={"ok": np.ones((2, 3, 4), np.float32), "fc": array})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"groups": ()}, r"got the groups \[\]"),
        ({"groups": ("a", "a")}, "allowed: one or more different names"),
        ({"counts": (1,)}, r"got the counts \[1\]; allowed: one above 0 for each group"),
        ({"counts": (1, 0)}, "allowed: one above 0 for each group"),
        ({"layers": {}}, "got no layer"),
        ({"layers": {"fc": np.ones((3, 4, 4), np.float32)}}, r"'fc': got float32 \(3, 4, 4\); allowed: float32 \(2, "),
        ({"layers": {"fc": np.ones((2, 4), np.float64)}}, "got float64"),
        ({"layers": {"fc": np.ones(2, np.float32)}}, r"got float32 \(2,\)"),
    ],
)
def test_bad_maps_are_named(change, text):
    with pytest.raises(UserError, match=text):
        maps(**change)


def test_files_that_are_no_maps(tmp_path):
    path = tmp_path / "importance.safetensors"
    with pytest.raises(ArtifactError, match="not found; run the stage"):
        ImportanceMaps.load(path)
    artifacts.write_tensors(path, {"x": np.ones((1, 1), np.float32)}, meta={"kind": "bits"})
    with pytest.raises(ArtifactError, match="got no importance maps; allowed: the importance stage's output"):
        ImportanceMaps.load(path)
    damaged = {"kind": "importance", "layers": ["x"], "groups": ["a"], "counts": [1], "measured": {}}
    artifacts.write_tensors(path, {"x": np.full((1, 1), np.nan, np.float32)}, meta=damaged)
    with pytest.raises(ArtifactError, match="importance.safetensors: importance: layer 'x', group 'a': got NaN"):
        ImportanceMaps.load(path)

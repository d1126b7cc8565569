import pytest

from fairquant.errors import ArtifactError, UserError
from fairquant.models.spec import ModelSpec

GOOD = {"name": "resnet18", "classes": ("a", "b"), "image_size": 32, "mean": (0.5,) * 3, "std": (0.25,) * 3}


def test_round_trip_through_json_values():
    spec = ModelSpec(**{**GOOD, "mean": (1 / 3, 0.5, 0.1234567)})
    assert spec.mean == (0.333333, 0.5, 0.123457)
    assert spec.to_dict()["classes"] == ["a", "b"]
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    assert spec.n_classes == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"classes": ("a",)}, r"got the classes \['a'\]; allowed: two or more different names"),
        ({"classes": ("a", "a")}, "two or more different names"),
        ({"image_size": 0}, "got image_size 0; allowed: 1 or more pixels"),
        ({"in_channels": 1}, "got 1 input channels; allowed: 3"),
        ({"mean": (0.5,)}, "allowed: 3 values each, std above 0"),
        ({"std": (0.5, 0.5, 0.0)}, "allowed: 3 values each, std above 0"),
    ],
)
def test_bad_values_are_named(change, text):
    with pytest.raises(UserError, match=text):
        ModelSpec(**{**GOOD, **change})


@pytest.mark.parametrize("change", [{"extra": 1}, {"classes": ["a"]}, {"mean": ["x", 1, 1]}, {"image_size": "big"}])
def test_a_damaged_description_is_an_artifact_error(change):
    with pytest.raises(ArtifactError, match=r"^model\.json: got "):
        ModelSpec.from_dict({**ModelSpec(**GOOD).to_dict(), **change}, source="model.json")

import pytest

from fairquant.models.spec import ModelSpec


@pytest.fixture
def make_spec():
    def make(name="resnet18", *, classes=("benign", "malignant", "other"), size=32):
        return ModelSpec(name, classes, size, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))

    return make

import pytest
import torch
from torch import nn


@pytest.fixture
def tiny_model():
    """A classifier of 16-pixel images with batch statistics worth keeping and dropout to switch off."""

    def make(n_classes=2, seed=0):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, groups=2, bias=False),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.5),
            nn.Linear(32, n_classes),
        )
        model[1].running_mean.normal_(0, 0.1)
        model[1].running_var.uniform_(0.5, 2)
        return model

    return make

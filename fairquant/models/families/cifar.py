"""The residual networks for small images of He et al. 2016 (arXiv 1512.03385, section 4.2): ``resnet20`` to ``110``.

6n + 2 layers: a 3×3 convolution, three stages of n blocks of two 3×3 convolutions with 16, 32 and 64 channels, the mean
over positions and one linear layer. The second and third stage begin with stride 2. Shortcuts have no parameters
(option A): every second pixel, and zeros for the channels that are new, as many before as behind those there were.

Parameters and buffers have the names of the weights published for CIFAR-10 (``conv1``, ``layer1.0.bn1``, ``linear`` …),
so those import by path; zeros are on both sides because those networks were trained so.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fairquant.models.families._checks import check_request

BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
"""Blocks in each of the three stages, n."""
SMALLEST = 8
"""Pixels: the last stage still sees 2 × 2 positions."""


def names() -> list[str]:
    """Return the sorted names of the family."""
    return sorted(BLOCKS)


def knows(name: str) -> bool:
    """Say whether ``name`` is one of the family."""
    return name in BLOCKS


def create(name: str, *, num_classes: int, image_size: int, pretrained: bool) -> nn.Module:
    """Build ``name`` for ``num_classes``; any ``image_size`` from 8 pixels will do.

    Raises ``UserError`` for a smaller size, and for ``pretrained``: there are no ImageNet weights.
    """
    check_request(name, image_size=image_size, smallest=SMALLEST, pretrained=pretrained)
    return CifarResNet(BLOCKS[name], num_classes)


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut: (B, before, H, W) → (B, after, ⌈H/stride⌉, ⌈W/stride⌉)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.new = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(bn(conv(relu(bn(conv(x))))) + shortcut(x))."""
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new, self.new))
        return F.relu(inner + x)


class CifarResNet(nn.Module):
    """A network of three stages of ``n`` blocks: (B, 3, H, W) → (B, ``num_classes``)."""

    def __init__(self, n: int, num_classes: int) -> None:
        """Start from He et al. 2015 (arXiv 1502.01852): normal weights of variance 2 / fan-in."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(n, 16, 16, stride=1)
        self.layer2 = _stage(n, 16, 32, stride=2)
        self.layer3 = _stage(n, 32, 64, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return one logit per class."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(n: int, before: int, after: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(before, after, stride), *(_Block(after, after, 1) for _ in range(n - 1)))

"""Draws one synthetic dermatoscopy-like image: skin of a given tone, a lesion, hair, illumination and noise.

Skin tone is the individual typology angle ITA = atan((L* − 50) / b*) · 180/π (Chardon, Cretois & Hourseau 1991), the
usual objective stand-in for the Fitzpatrick types I–VI. Colours are mixed in CIELAB and converted to sRGB (D65,
IEC 61966-2-1). Nothing here is medical: shapes and colours are chosen to pose a learnable task, not to look real.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]

ITA_BANDS: dict[str, tuple[float, float]] = {
    "I": (55.0, 65.0),
    "II": (41.0, 55.0),
    "III": (28.0, 41.0),
    "IV": (10.0, 28.0),
    "V": (-30.0, 10.0),
    "VI": (-55.0, -30.0),
}
"""ITA in degrees by Fitzpatrick-like type (Del Bino & Bernerd 2013), closed at the ends."""

_WHITE = np.array([0.95047, 1.0, 1.08883], np.float32)
_TO_RGB = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]], np.float32)


@dataclass(frozen=True)
class Lesion:
    """What decides the class, each in [0, 1]: border irregularity, colour variegation, asymmetry."""

    border: float
    colour: float
    asymmetry: float


def skin_lab(ita: float) -> tuple[float, float, float]:
    """Return L*, a*, b* of skin with the given ITA, degrees in [-60, 70]; b* is smaller on the lightest and darkest.

    >>> [round(value, 1) for value in skin_lab(35.0)]
    [62.6, 9.6, 18.0]
    """
    b = 18.0 - 0.1 * max(0.0, -ita) - 0.25 * max(0.0, ita - 41.0)
    a = 11.0 - 0.04 * ita
    return 50.0 + b * float(np.tan(np.radians(ita))), a, b


def lab_to_rgb(lab: Field) -> Field:
    """Convert CIELAB (D65), last axis L*, a*, b*, to sRGB in [0, 1], clipped to the gamut.

    >>> lab_to_rgb(np.array([100.0, 0.0, 0.0], np.float32)).round(2).tolist()
    [1.0, 1.0, 1.0]
    """
    fy = (lab[..., 0] + 16) / 116
    f = np.stack([fy + lab[..., 1] / 500, fy, fy - lab[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, (f - 4 / 29) * np.float32(108 / 841)) * _WHITE
    linear = np.clip(xyz @ _TO_RGB.T, 0, 1)
    rgb: Field = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** np.float32(1 / 2.4) - 0.055)
    return rgb


def contrast(ita: float, dark: float) -> float:
    """Return how strongly a lesion stands out: 1 on the lightest skin, falling linearly to ``dark`` on the darkest."""
    lightness = float(np.clip((ita + 55) / 110, 0, 1))
    return dark + (1 - dark) * lightness


def draw(ita: float, lesion: Lesion, *, size: int, seed: tuple[int, ...], difficulty: float) -> npt.NDArray[np.uint8]:
    """Return the image, uint8 (size, size, 3).

    Args:
        ita: skin tone, degrees.
        lesion: what decides the class; nothing else in the image depends on the class.
        size: height and width, pixels.
        seed: decides everything that is drawn at random.
        difficulty: in [0, 1]; more noise, more hair, fainter lesions on dark skin.
    """
    random = np.random.default_rng(seed)
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1
    x: Field = np.tile(axis, (size, 1))
    y: Field = x.T.copy()
    strength = contrast(ita, dark=0.55 - 0.4 * difficulty)
    lab = np.empty((size, size, 3), np.float32)
    lab[:] = skin_lab(ita)
    lab[..., 0] += 1.5 * _texture(random, x, y, waves=6, low=4, high=14)
    mask, offset = _lesion_layers(random, x, y, lesion, softness=3.0 / size)
    lab += (strength * mask)[..., None] * offset
    lab[..., 0] += _illumination(random, x, y)
    hairs = int(random.poisson(1 + 4 * difficulty))
    lab[..., 0] *= 1 - 0.6 * _hair(random, x, y, hairs, width=1.2 / size)
    rgb = lab_to_rgb(lab) * 255
    rgb += random.normal(0, 2 + 10 * difficulty, rgb.shape).astype(np.float32)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def _texture(random: np.random.Generator, x: Field, y: Field, *, waves: int, low: float, high: float) -> Field:
    """Return a smooth random field of about unit variance: a sum of plane waves (random Fourier features)."""
    angle = random.uniform(0, np.pi, waves)
    wave = random.uniform(low, high, waves)
    phase = random.uniform(0, 2 * np.pi, waves)
    kx, ky = (wave * np.cos(angle)).astype(np.float32), (wave * np.sin(angle)).astype(np.float32)
    field = np.cos(x[..., None] * kx + y[..., None] * ky + phase.astype(np.float32)).sum(axis=-1)
    unit: Field = field * np.float32(np.sqrt(2 / waves))
    return unit


def _lesion_layers(
    random: np.random.Generator, x: Field, y: Field, lesion: Lesion, *, softness: float
) -> tuple[Field, Field]:
    """Return (coverage in [0, 1] of (S, S), Lab offset of (S, S, 3) where covered)."""
    cx, cy = random.uniform(-0.15, 0.15, 2)
    turn, aspect, radius = random.uniform(0, np.pi), random.uniform(0.8, 1.0), random.uniform(0.42, 0.58)
    u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
    v = ((y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)) / aspect
    theta, rho = np.arctan2(v, u).astype(np.float32), np.hypot(u, v).astype(np.float32)
    edge = np.ones_like(theta)
    for order in range(5, 12):  # fine teeth: border irregularity
        edge += 0.075 * lesion.border * random.normal() * np.cos(order * theta + random.uniform(0, 2 * np.pi))
    for order in (1, 2, 3):  # one-sided bulges: asymmetry of shape
        edge += 0.16 * lesion.asymmetry / order * np.cos(order * theta + random.uniform(0, 2 * np.pi))
    mask = 1 / (1 + np.exp(np.clip((rho - radius * edge) / softness, -30, 30)))
    side = random.uniform(0, 2 * np.pi)
    tilt = lesion.asymmetry * (np.cos(side) * u + np.sin(side) * v) / radius  # darker on one side: asymmetry of colour
    patches = _texture(random, u.astype(np.float32), v.astype(np.float32), waves=5, low=4, high=9)
    hue = _texture(random, u.astype(np.float32), v.astype(np.float32), waves=5, low=4, high=9)
    offset = np.empty((*x.shape, 3), np.float32)
    offset[..., 0] = random.uniform(-30, -22) + 9 * lesion.colour * patches + 9 * tilt
    offset[..., 1] = random.uniform(4, 9) + 8 * lesion.colour * hue
    offset[..., 2] = random.uniform(0, 6) - 8 * lesion.colour * patches
    return mask.astype(np.float32), offset


def _illumination(random: np.random.Generator, x: Field, y: Field) -> Field:
    """Return a lightness offset: a linear fall-off across the image and darker corners."""
    gx, gy = random.uniform(-4, 4, 2)
    offset: Field = (gx * x + gy * y - random.uniform(0, 5) * (x**2 + y**2)).astype(np.float32)
    return offset


def _hair(random: np.random.Generator, x: Field, y: Field, count: int, *, width: float) -> Field:
    """Return coverage in [0, 1] by ``count`` thin bent hairs."""
    cover = np.zeros_like(x)
    for _ in range(count):
        turn, shift, bend = random.uniform(0, np.pi), random.uniform(-0.9, 0.9), random.uniform(-0.3, 0.3)
        along = x * np.cos(turn) + y * np.sin(turn)
        across = y * np.cos(turn) - x * np.sin(turn)
        distance = np.abs(across - shift - bend * along**2)
        cover = np.maximum(cover, np.clip(1.5 - distance / width, 0, 1))
    return cover.astype(np.float32)

from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fairquant.data.decode import decode, decode_all


def save(pixels: np.ndarray, path: Path, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_an_image_of_the_right_size_is_kept_bit_for_bit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert np.array_equal(decode(save(pixels, tmp_path / "a.png"), 9), pixels)
    assert np.array_equal(decode(partial(np.array, pixels), 9), pixels)
    assert np.array_equal(decode(partial(Image.fromarray, pixels), 9), pixels)


def test_resizing_is_antialiased_lanczos(tmp_path):
    checkers = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = decode(save(checkers, tmp_path / "a.png"), 8)
    assert small.shape == (8, 8, 3)
    assert np.abs(small.astype(int) - 127).max() <= 3, "without antialiasing the checkers alias to 0 or 255"
    oracle = Image.fromarray(checkers).convert("RGB").resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(small, np.asarray(oracle))


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.full((4, 4), 7, np.uint8), (7, 7, 7)),
        (np.full((4, 4), 77 * 257, np.uint16), (77, 77, 77)),
        (np.full((4, 4), 65535, np.uint16), (255, 255, 255)),
        (np.full((4, 4), 200, np.uint16), (200, 200, 200)),
        (np.full((4, 4, 4), (1, 2, 3, 255), np.uint8), (1, 2, 3)),
        (np.full((4, 4), True), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, pixels, expected):
    assert np.array_equal(decode(save(pixels, tmp_path / "a.png"), 4), np.full((4, 4, 3), expected, np.uint8))


def test_the_orientation_tag_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90° clockwise to display"
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    path = save(pixels, tmp_path / "a.png", exif=exif.tobytes())
    assert np.array_equal(decode(path, 4), np.rot90(pixels, -1))


def test_a_large_jpeg_is_decoded_at_reduced_scale_with_the_same_look(tmp_path):
    y, x = np.mgrid[0:512, 0:512] / 512
    pixels = (np.stack([x, y, x * y], axis=-1) * 255).astype(np.uint8)
    path = save(pixels, tmp_path / "a.jpg", quality=95)
    oracle = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.LANCZOS))
    assert np.abs(decode(path, 16).astype(int) - oracle).max() <= 4


@pytest.fixture
def sources(tmp_path):
    made = []
    for index in range(520):
        pixels = np.full((4, 4, 3), index % 251, np.uint8)
        made.append(partial(np.array, pixels) if index % 2 else save(pixels, tmp_path / f"{index}.png"))
    return made


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_keep_their_order_whatever_the_workers(tmp_path, sources, workers):
    assert decode_all(sources, size=4, out=tmp_path / "x.npy", workers=workers) == {}
    images = np.load(tmp_path / "x.npy")
    assert images.shape == (520, 4, 4, 3) and images.dtype == np.uint8
    assert np.array_equal(images[:, 0, 0, 0], np.arange(520) % 251)


def test_unreadable_images_are_named_by_row_without_paths(tmp_path, sources):
    (tmp_path / "100.png").write_bytes(b"no image")
    truncated = (tmp_path / "200.png").read_bytes()[:40]
    (tmp_path / "200.png").write_bytes(truncated)
    (tmp_path / "300.png").unlink()
    errors = decode_all(sources, size=4, out=None, workers=1)
    assert sorted(errors) == [100, 200, 300]
    assert errors[100].startswith("UnidentifiedImageError")
    assert errors[300].startswith("FileNotFoundError")
    assert not any(str(tmp_path) in text for text in errors.values())


@pytest.mark.parametrize("orientation", [1, 6])
def test_an_opened_image_gives_the_pixels_of_its_file(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif)
    opened = decode(partial(Image.open, BytesIO((tmp_path / "a.jpg").read_bytes())), 16)
    assert np.array_equal(opened, decode(tmp_path / "a.jpg", 16))

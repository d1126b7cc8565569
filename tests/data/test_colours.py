"""Every kind of image against numpy arithmetic on the values that were written."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fairquant.data.colours import scale_grey, to_rgb
from fairquant.data.decode import decode

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def shown(path, image, **options) -> np.ndarray:
    image.save(path, **options)
    return decode(path, 8).astype(int)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("largest", [255, 4095, 65535])
def test_deep_grey_keeps_its_contrast(tmp_path, suffix, largest):
    values = np.rint(RAMP * largest).astype(np.uint16)
    pixels = shown(tmp_path / f"a.{suffix}", Image.fromarray(values))
    np.testing.assert_array_equal(pixels, grey(np.rint(values * (255 / largest))))
    assert pixels.min() == 0 and pixels.max() == 255 and len(np.unique(pixels)) == 64


def test_both_byte_orders_of_a_16_bit_tiff_are_read(tmp_path):
    values = np.rint(RAMP * 65535).astype(np.uint16)
    for order, name in (("<", "little.tif"), (">", "big.tif")):
        body = values.astype(f"{order}u2").tobytes()
        tags = [(256, 8), (257, 8), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, len(body))]
        entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags)
        head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(body))
        (tmp_path / name).write_bytes(head + body + struct.pack(f"{order}H", len(tags)) + entries + bytes(4))
        np.testing.assert_array_equal(decode(tmp_path / name, 8), grey(np.rint(values / 257)))


def test_colours_of_16_bits_keep_their_upper_byte(tmp_path):
    values = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=2)
    values = np.rint(values * 65535).astype(">u2")
    lines = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    assert np.abs(decode(tmp_path / "a.png", 8).astype(int) - values / 257).max() <= 1


def test_fractions_are_times_255(tmp_path):
    pixels = shown(tmp_path / "a.tif", Image.fromarray(RAMP.astype(np.float32)))
    np.testing.assert_array_equal(pixels, grey(np.rint(RAMP.astype(np.float32) * 255)))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([[-1024, 3071]], np.int32), "-1024 to 3071"),
        (np.array([[0, 65536]], np.int32), "0 to 65536"),
        (np.array([[-0.5, 0.5]], np.float32), "-0.5 to 0.5"),
        (np.array([[0, np.nan]], np.float32), "nan to nan"),
    ],
)
def test_grey_of_unknown_range_is_refused(tmp_path, values, said):
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=f"got grey values from {said}; allowed: 0 to 65535, or 0.0 to 1.0"):
        decode(tmp_path / "a.tif", 8)


@pytest.mark.parametrize(("value", "bits"), [(1, 8), (255, 8), (256, 12), (4095, 12), (4096, 16), (65535, 16)])
def test_the_range_is_the_smallest_that_holds_the_values(value, bits):
    assert scale_grey(np.array([0, value])).tolist() == [0, round(255 * value / (2**bits - 1))]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_black_stays_black(dtype):
    assert scale_grey(np.zeros((2, 2), dtype)).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opacity_is_dropped(tmp_path, mode):
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    pixels = colours if mode == "RGBA" else colours[..., 2:]
    expected = colours[..., :3] if mode == "RGBA" else grey(colours[..., 2])
    np.testing.assert_array_equal(shown(tmp_path / "a.png", Image.fromarray(pixels)), expected)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_palette_with_a_transparent_colour_shows_its_colours(tmp_path, suffix):
    places = np.random.default_rng(0).integers(0, 3, (8, 8), dtype=np.uint8)
    palette = np.array([[200, 10, 20], [30, 190, 40], [50, 60, 180]], np.uint8)
    image = Image.frombytes("P", (8, 8), places.tobytes())
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(shown(tmp_path / f"a.{suffix}", image, transparency=1), palette[places])


def test_ink_becomes_light(tmp_path):
    ink = np.random.default_rng(0).integers(0, 256, (8, 8, 4)).astype(np.uint8)
    expected = (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255
    pixels = shown(tmp_path / "a.tif", Image.frombytes("CMYK", (8, 8), ink.tobytes()))
    assert np.abs(pixels - expected).max() <= 1


def test_an_ink_jpeg_is_not_inverted(tmp_path):
    pixels = shown(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    assert np.abs(pixels - [255, 0, 0]).max() <= 2


def test_of_several_images_it_is_the_first(tmp_path):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0)))
    for name in ("a.gif", "a.tif", "a.webp", "a.png"):
        options = {"lossless": True} if name.endswith("webp") else {}
        pixels = shown(tmp_path / name, first, save_all=True, append_images=[second], **options)
        assert np.abs(pixels - [250, 0, 0]).max() == 0, name


def test_an_image_of_8_bits_is_converted_as_the_library_does():
    image = Image.new("1", (3, 3), 1)
    assert np.asarray(to_rgb(image)).tolist() == [[[255] * 3] * 3] * 3

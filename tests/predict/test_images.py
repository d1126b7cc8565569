"""Which files are images, how they are read, and that the model is fed what it was trained on, bit for bit."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fairquant.config.load import parse_config
from fairquant.data.batches import iterate
from fairquant.data.decode import decode
from fairquant.data.prepare import prepare
from fairquant.data.store import Store
from fairquant.errors import DataError, UserError
from fairquant.predict.images import AHEAD, SUFFIXES, Unreadable, find_images, normalise, read_images
from tests.predict.conftest import write_images


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


class TestFinding:
    def test_a_folder_gives_its_images_in_natural_order(self, tmp_path):
        touch(tmp_path, "10.jpg", "9.jpg", "b.PNG", "a b é.webp", "note.txt", ".hidden.jpg", "._9.jpg", "in/x.jpg")
        names = [path.name for path in find_images([tmp_path])]
        assert names == ["9.jpg", "10.jpg", "a b é.webp", "b.PNG"]

    def test_recursive_goes_into_folders_but_not_into_hidden_ones(self, tmp_path):
        touch(tmp_path, "z.jpg", "b/2.jpg", "b/10.jpg", "a/b/c.jpg", ".git/x.jpg")
        found = find_images([tmp_path], recursive=True)
        assert [str(path.relative_to(tmp_path)) for path in found] == ["a/b/c.jpg", "b/2.jpg", "b/10.jpg", "z.jpg"]

    def test_folders_that_link_to_themselves_end(self, tmp_path):
        touch(tmp_path, "a/x.jpg")
        os.symlink(tmp_path, tmp_path / "a" / "again")
        assert find_images([tmp_path], recursive=True) == [tmp_path / "a" / "x.jpg"]

    def test_arguments_keep_their_order_and_nothing_comes_twice(self, tmp_path):
        touch(tmp_path, "in/1.jpg", "in/2.jpg", "z.dat")
        found = find_images([tmp_path / "z.dat", str(tmp_path / "in" / "2.jpg"), tmp_path / "in", tmp_path / "z.dat"])
        assert [path.name for path in found] == ["z.dat", "2.jpg", "1.jpg"]

    def test_one_file_by_two_ways_comes_once(self, tmp_path):
        touch(tmp_path, "in/1.jpg")
        first = tmp_path / "in" / ".." / "in" / "1.jpg"
        assert find_images([first, tmp_path / "in", tmp_path / "in" / "1.jpg"]) == [first]

    def test_every_suffix_is_one_the_image_library_knows(self):
        assert set(SUFFIXES) <= Image.registered_extensions().keys()

    def test_what_is_not_there(self, tmp_path):
        with pytest.raises(DataError) as error:
            find_images([tmp_path / "x.jpg"])
        assert str(error.value) == f"{tmp_path / 'x.jpg'}: not found; allowed: image files and folders of images"

    @pytest.mark.parametrize(("recursive", "hint"), [(False, ", or --recursive for those in its folders"), (True, "")])
    def test_a_folder_without_images(self, tmp_path, recursive, hint):
        touch(tmp_path, "in/note.txt", "note")
        with pytest.raises(DataError) as error:
            find_images([tmp_path], recursive=recursive)
        allowed = ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp"
        assert str(error.value) == f"{tmp_path}: got no images; allowed: files named {allowed}{hint}"

    def test_a_folder_that_cannot_be_listed(self, tmp_path, monkeypatch):
        def scandir(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(DataError) as error:
            find_images([tmp_path])
        assert str(error.value) == f"{tmp_path}: not readable (Permission denied)"


def every_kind(folder: Path) -> dict[Path, np.ndarray]:
    """Write images of one colour in all modes people have; return the RGB that a person sees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    half = np.zeros((8, 8, 3), np.uint8)
    half[:4] = (200, 100, 50)
    made = {
        "16-bit.png": (Image.fromarray(np.full((8, 8), 77 * 257, np.uint16)), {}, (77, 77, 77)),
        "16-bit.tiff": (Image.fromarray(np.full((8, 8), 77 * 257, np.uint16)), {}, (77, 77, 77)),
        "grey.jpg": (Image.new("L", (8, 8), 90), {}, (90, 90, 90)),
        "one bit.png": (Image.new("1", (8, 8), 1), {}, (255, 255, 255)),
        "alpha.png": (Image.new("RGBA", (8, 8), (10, 20, 30, 0)), {}, (10, 20, 30)),
        "grey alpha.png": (Image.new("LA", (8, 8), (60, 128)), {}, (60, 60, 60)),
        "ink.jpg": (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), {"quality": 100}, (255, 0, 0)),
        "ink.tif": (Image.new("CMYK", (8, 8), (255, 0, 0, 0)), {}, (0, 255, 255)),
        "palette.gif": (Image.new("RGB", (8, 8), (0, 255, 0)).quantize(4), {}, (0, 255, 0)),
        "one pixel.png": (Image.new("RGB", (1, 1), (1, 2, 3)), {}, (1, 2, 3)),
        "a line.bmp": (Image.new("RGB", (500, 1), (9, 8, 7)), {}, (9, 8, 7)),
        "hud, 皮膚 ü.webp": (Image.new("RGB", (8, 8), (40, 40, 40)), {"lossless": True}, (40, 40, 40)),
        "turned.png": (Image.fromarray(half), {"exif": exif.tobytes()}, np.rot90(half, -1)),
    }
    folder.mkdir(exist_ok=True)
    seen = {}
    for name, (image, options, colour) in made.items():
        image.save(folder / name, **options)
        seen[folder / name] = np.broadcast_to(np.array(colour, np.uint8), (8, 8, 3))
    return seen


class TestReading:
    @pytest.mark.parametrize("threads", [1, 3])
    def test_every_kind_of_image_in_order(self, tmp_path, threads):
        seen = every_kind(tmp_path)
        read = list(read_images(seen, 8, threads=threads))
        assert [path for path, _ in read] == list(seen)
        for path, pixels in read:
            assert not isinstance(pixels, Unreadable), pixels
            assert pixels.dtype == np.uint8
            assert np.abs(pixels.astype(int) - seen[path]).max() <= 1, path  # 1: JPEG
            assert np.array_equal(pixels, decode(path, 8))

    def test_what_cannot_be_read_is_said_in_a_line(self, tmp_path):
        [whole] = write_images(tmp_path, "good.png", size=64)
        Image.open(whole).save(tmp_path / "cut.jpg")
        Image.open(whole).save(tmp_path / "cut.tif")
        for name in ("cut.jpg", "cut.tif"):
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:700])
        (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:200])
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "a\nb.jpg").write_text("hello")
        names = ("cut.jpg", "cut.tif", "cut.png", "empty.jpg", "a\nb.jpg", "absent.jpg", ".")
        answers = [found for _, found in read_images((tmp_path / name for name in names), 8, threads=2)]
        assert all(isinstance(answer, Unreadable) for answer in answers)
        reasons = [answer.reason for answer in answers]
        assert reasons[0].startswith("image file is truncated (")
        assert reasons[3:] == ["cannot identify image file"] * 2 + ["No such file or directory", "Is a directory"]
        assert not any("\n" in reason or str(tmp_path) in reason for reason in reasons)
        assert str(answers[3]) == f"{tmp_path / 'empty.jpg'}: not a readable image (cannot identify image file)"

    def test_only_a_few_images_are_read_ahead(self, tmp_path):
        [path] = write_images(tmp_path, "a.png")
        asked = []

        def paths():
            for number in range(1000):
                asked.append(number)
                yield path

        reading = read_images(paths(), 8, threads=2)
        next(reading)
        assert len(asked) == AHEAD * 2 + 1
        reading.close()

    def test_nothing_to_read(self):
        assert list(read_images([], 8, threads=1)) == []


class TestNormalising:
    def test_it_is_what_training_sees_bit_for_bit(self, tmp_path):
        """From files of all sorts: prepare, then the training batches; here: the files themselves."""
        paths = list(every_kind(tmp_path / "raw"))
        names = [f"{number}.png" for number in range(12)]
        paths += write_images(tmp_path / "raw", *names, size=37) + write_images(tmp_path / "raw", "L.png", size=90)
        for path in write_images(tmp_path / "raw", "p.png", size=151):
            Image.open(path).save(tmp_path / "raw" / "p.jpg", quality=80)
            paths.append(tmp_path / "raw" / "p.jpg")
        with (tmp_path / "raw" / "labels.csv").open("w", encoding="utf-8", newline="") as file:
            rows = [[path.name, "ab"[i % 2], "g", ("train", "val", "test")[i // 2 % 3]] for i, path in enumerate(paths)]
            csv.writer(file).writerows([["image", "label", "group", "split"], *rows])
        data = {"name": "folder", "path": str(tmp_path / "raw"), "image_size": 16}
        prepare(parse_config({"data": data, "workers": 1}), tmp_path / "prepared")
        store = Store.open(tmp_path / "prepared")
        assert len(store) == len(paths)
        training = torch.cat(
            [batch.images for batch in iterate(store, np.arange(len(store)), batch_size=7, device=torch.device("cpu"))]
        )
        given = [tmp_path / "raw" / name for name in store.ids]
        pixels = np.stack([found for _, found in read_images(given, 16, threads=2)])
        ours = normalise(pixels, store.meta["mean"], store.meta["std"])
        assert ours.dtype == np.float32 and ours.flags.c_contiguous
        assert np.array_equal(ours.view(np.uint32), training.contiguous().numpy().view(np.uint32))

    def test_every_pixel_value_at_many_means(self):
        random = np.random.default_rng(0)
        pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
        for _ in range(50):
            mean, std = random.uniform(0, 1, 3).round(6).tolist(), random.uniform(0.01, 1, 3).round(6).tolist()
            x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
            shift = torch.tensor(mean).view(1, 3, 1, 1) * 255
            scale = 1 / (torch.tensor(std).view(1, 3, 1, 1) * 255)
            assert np.array_equal(normalise(pixels, mean, std), x.sub(shift).mul(scale).numpy())

    @pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4), (1, 3, 4, 4)])
    def test_other_arrays_are_refused(self, shape):
        with pytest.raises(UserError, match=r"pixels: got uint8 .*; allowed: uint8 \(N, height, width, 3\)"):
            normalise(np.zeros(shape, np.uint8), (0.5,) * 3, (0.5,) * 3)

import re
import stat
import tarfile
import zipfile

import numpy as np
import pytest

from fairquant.data import archive
from fairquant.data.archive import unpack
from fairquant.errors import DataError
from tests.data.archives import tar_of, zip_of

FILES = {f"images/{index}.jpg": np.random.default_rng(index).bytes(3000) for index in range(5)}


def refused(path, target, message):
    """Unpack, expect one line, and nothing under the target's name nor outside it."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(DataError, match=message) as caught:
        unpack(path, target)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert sorted(path.parent.rglob("*")) == before


def member(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_everything_is_unpacked_and_nothing_else(tmp_path, mode):
    path = tmp_path / "archive"
    zip_of(path, FILES) if mode == "zip" else tar_of(path, FILES, mode=mode, extra=[member("empty", tarfile.DIRTYPE)])
    unpack(path, tmp_path / "out")
    found = {str(file.relative_to(tmp_path / "out")): file for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert {name: file.read_bytes() for name, file in found.items()} == FILES
    assert sorted(item.name for item in tmp_path.iterdir()) == ["archive", "out"]


def test_permissions_and_owners_are_not_taken_over(tmp_path):
    info = member("run", tarfile.REGTYPE)
    info.mode = 0o6777
    unpack(tar_of(tmp_path / "a.tar", {}, extra=[info]), tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out" / "run").stat().st_mode) & 0o7111 == 0


def test_an_empty_folder_is_filled_and_a_filled_one_refused(tmp_path):
    path = zip_of(tmp_path / "a.zip", FILES)
    (tmp_path / "out").mkdir()
    unpack(path, tmp_path / "out")
    with pytest.raises(DataError, match="out: exists already; allowed: an empty or absent folder for a.zip"):
        unpack(path, tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    unpack(path, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "elsewhere" / "images").is_dir()


def test_one_top_level_folder(tmp_path):
    path = zip_of(tmp_path / "a.zip", {**FILES, "__MACOSX/x": b"", "./images/more/7.jpg": b"7", "imagesx/8.jpg": b"8"})
    unpack(path, tmp_path / "out", member="images")
    names = sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.jpg"))
    assert names == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "more/7.jpg"]
    with pytest.raises(
        DataError, match="holds __MACOSX, images, imagesx; allowed: one that holds the folder 'pictures'"
    ):
        unpack(path, tmp_path / "other", member="pictures")
    assert not (tmp_path / "other").exists()
    with pytest.raises(
        DataError, match="got an archive that holds README; allowed: one that holds the folder 'README'"
    ):
        unpack(zip_of(tmp_path / "b.zip", {"README": b"?"}), tmp_path / "other", member="README")


@pytest.mark.parametrize("make", [tar_of, zip_of])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../evil", r"a path with '\.\.'"),
        ("images/../../evil", r"a path with '\.\.'"),
        ("..\\evil", r"a path with '\.\.'"),
        ("/tmp/evil", "an absolute path"),
        ("\\evil", "an absolute path"),
        ("C:\\evil", "an absolute path"),
        ("c:evil", "an absolute path"),
    ],
)
def test_members_that_leave_the_folder(tmp_path, make, name, reason):
    path = make(tmp_path / "archive", {**FILES, name: b"x"})
    refused(
        path, tmp_path / "out", rf"refused, the member {re.escape(repr(name))} is {reason}; allowed: files and folders"
    )


@pytest.mark.parametrize("target", ["../evil", "/etc/passwd", "images/0.jpg", "."])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_tar(tmp_path, kind, target):
    path = tar_of(tmp_path / "a.tar.gz", FILES, extra=[member("images/link", kind, target)])
    refused(path, tmp_path / "out", "refused, the member 'images/link' is a link; allowed: files and folders")


def test_a_file_below_a_link(tmp_path):
    """The classic escape: a link to the outside, then a file below it."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tape:
        tape.addfile(member("images", tarfile.SYMTYPE, str(tmp_path / "victim")))
        tape.addfile(member("images/evil", tarfile.REGTYPE))
    (tmp_path / "victim").mkdir()
    refused(path, tmp_path / "out", "the member 'images' is a link")


def test_links_in_a_zip(tmp_path):
    path = zip_of(tmp_path / "a.zip", {"link": b"/etc", "link/evil": b"x"}, modes={"link": stat.S_IFLNK | 0o777})
    refused(path, tmp_path / "out", "refused, the member 'link' is a link")


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_special_files(tmp_path, kind):
    path = tar_of(tmp_path / "a.tar", FILES, extra=[member("dev", kind)])
    refused(path, tmp_path / "out", "refused, the member 'dev' is a device or another special file")
    zipped = zip_of(tmp_path / "a.zip", {"dev": b""}, modes={"dev": stat.S_IFCHR})
    refused(zipped, tmp_path / "out", "refused, the member 'dev' is a device or another special file")


def test_members_outside_the_wanted_folder_are_checked_too(tmp_path):
    path = tar_of(tmp_path / "a.tar", {**FILES, "../evil": b""})
    with pytest.raises(DataError, match="the member '../evil' is a path with"):
        unpack(path, tmp_path / "out", member="images")


def test_names_that_stand_twice(tmp_path):
    path = tar_of(tmp_path / "a.tar", {"images/0.jpg": b"a", "images/./0.jpg": b"b"})
    refused(path, tmp_path / "out", r"the member 'images/./0.jpg' stands there twice; allowed: each name once")
    both = tar_of(tmp_path / "b.tar", {"images": b"a", "images/0.jpg": b"b"})
    refused(both, tmp_path / "out", r"b.tar: not unpacked into .*out \((File exists|Not a directory)\)")


def test_archives_that_grow_beyond_the_bound(tmp_path):
    zeros = bytes(1_000_000)
    for path in (
        zip_of(tmp_path / "a.zip", {"a": zeros, "b": zeros}),
        tar_of(tmp_path / "a.tgz", {"a": zeros, "b": zeros}),
    ):
        unpack(path, tmp_path / path.suffix, limit=2_000_000)
        with pytest.raises(
            DataError, match="refused, it unpacks to more than 1,999,999 bytes or .* members; allowed: "
        ):
            unpack(path, tmp_path / "out", limit=1_999_999)
        assert not (tmp_path / "out").exists()


def test_the_bound_follows_the_size_of_the_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "GIB", 1000)
    path = zip_of(tmp_path / "a.zip", {"a": bytes(1_000_000)})
    assert path.stat().st_size * archive.GROWTH < 1_000_000
    refused(path, tmp_path / "out", "refused, it unpacks to more than [0-9,]+ bytes")
    monkeypatch.setattr(archive, "MAX_MEMBERS", 4)
    refused(zip_of(tmp_path / "b.zip", FILES), tmp_path / "out", "or 4 members")


def test_a_size_that_the_header_belies(tmp_path):
    path = zip_of(tmp_path / "a.zip", {"a": bytes(100_000)})
    raw = path.read_bytes()
    path.write_bytes(raw.replace((100_000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    refused(path, tmp_path / "out", "not a whole zip or tar archive")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_truncated_anywhere(tmp_path, mode):
    whole = tmp_path / "whole"
    zip_of(whole, FILES) if mode == "zip" else tar_of(whole, FILES, mode=mode)
    raw, path = whole.read_bytes(), tmp_path / "cut"
    # 3584 is where the second member's header begins in the plain tar: tarfile alone takes a cut there for the end
    for length in (0, 1, 100, 512, 3584, 3600, 4096, len(raw) // 2, len(raw) - 11000 if mode == "w" else len(raw) - 1):
        path.write_bytes(raw[:length])
        refused(path, tmp_path / "out", r"cut: not a whole zip or tar archive \(.+\)")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "zip"])
def test_damaged_content(tmp_path, mode):
    path = tmp_path / "archive"
    zip_of(path, FILES) if mode == "zip" else tar_of(path, FILES, mode=mode)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    refused(path, tmp_path / "out", "not a whole zip or tar archive")


def test_a_damaged_header_in_the_middle_of_a_tar(tmp_path):
    path = tar_of(tmp_path / "a.tar", FILES, mode="w")
    raw = bytearray(path.read_bytes())
    raw[3584] ^= 0xFF
    path.write_bytes(raw)
    refused(path, tmp_path / "out", "it ends without the mark of its end")


def test_what_cannot_be_read(tmp_path):
    path = tmp_path / "a.zip"
    path.write_text("<html>not found</html>" * 100)
    refused(path, tmp_path / "out", "not a whole zip or tar archive")
    zip_of(path, FILES)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"\x14\x00\x00\x00\x08\x00", b"\x14\x00\x01\x00\x08\x00"))  # the flag "encrypted"
    refused(path, tmp_path / "out", "encrypted")
    with zipfile.ZipFile(path, "w"):
        pass
    refused(path, tmp_path / "out", "got an archive that holds nothing; allowed: one that holds at least one file")
    with pytest.raises(DataError, match="none.zip: not unpacked into .* .No such file or directory"):
        unpack(tmp_path / "none.zip", tmp_path / "out")


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = zip_of(tmp_path / "a.zip", FILES)
    monkeypatch.setattr("fairquant.artifacts._sync", full)
    refused(path, tmp_path / "out", r"a.zip: not unpacked into .*out \(No space left on device\)")

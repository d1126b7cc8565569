import hashlib
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from fairquant.data import download, web
from fairquant.data.download import Link, fetch, fetch_and_unpack
from fairquant.errors import DataError
from tests.data.archives import tar_of, zip_of
from tests.data.server import Reply

BODY = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()


def get(link, target, **settings):
    return fetch(link, target, layout="a.bin", **settings)


def fails(link, target, reason, **settings):
    """Fetch, expect one line with address, reason, folder and layout, and nothing under the final name."""
    with pytest.raises(DataError) as caught:
        get(link, target, **settings)
    assert str(caught.value) == (
        f"{link.url}: not fetched ({reason}); put it into {target.parent} by hand; expected a.bin"
    )
    assert not target.exists()


def left(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("known", [{}, {"sha256": SHA256.upper()}, {"md5": MD5}, {"size": len(BODY), "sha256": SHA256}])
def test_a_file_is_fetched_once(server, tmp_path, known):
    link = Link(server.serve("a.bin", BODY), **known)
    target = tmp_path / "new" / "folder" / "a.bin"
    for _ in range(2):
        assert get(link, target) == target and target.read_bytes() == BODY
    assert len(server.requests["/a.bin"]) == 1 and left(target.parent) == ["a.bin"]
    assert server.requests["/a.bin"][0]["user-agent"] == "fairquant"


def test_a_present_file_that_does_not_match_is_replaced(server, tmp_path, caplog):
    target = tmp_path / "a.bin"
    target.write_bytes(b"damaged")
    assert get(Link(server.serve("a.bin", BODY), sha256=SHA256), target).read_bytes() == BODY
    assert f"{target} is there, but got the sha256 " in caplog.text and "; fetching it anew" in caplog.text


def test_a_file_without_a_length_and_an_empty_one(server, tmp_path):
    chunked = Reply(BODY, length=-1)
    assert get(Link(server.serve("a.bin", chunked)), tmp_path / "a.bin").read_bytes() == BODY
    assert get(Link(server.serve("b.bin", b"")), tmp_path / "b.bin").read_bytes() == b""
    assert left(tmp_path) == ["a.bin", "b.bin"]


def test_a_cut_connection_goes_on_where_it_stopped(server, tmp_path):
    pauses = []
    link = Link(server.serve("a.bin", Reply(BODY, cut=100_000), Reply(BODY, cut=50_000), BODY), sha256=SHA256)
    assert get(link, tmp_path / "a.bin", pause=pauses.append, attempts=2).read_bytes() == BODY
    asked = [headers.get("range") for headers in server.requests["/a.bin"]]
    assert asked == [None, "bytes=100000-", "bytes=150000-"] and left(tmp_path) == ["a.bin"]
    assert server.requests["/a.bin"][1]["if-range"] == '"1"' and len(pauses) == 2


def test_a_later_call_goes_on_where_the_last_one_stopped(server, tmp_path):
    link = Link(server.serve("a.bin", Reply(BODY, cut=100_000), Reply(status=503)))
    fails(link, tmp_path / "a.bin", "HTTP 503 Service Unavailable; 2 attempts", attempts=2)
    assert left(tmp_path) == [".a.bin.note.partial", ".a.bin.partial"]
    server.serve("a.bin", BODY)
    server.requests.clear()
    assert get(link, tmp_path / "a.bin").read_bytes() == BODY
    assert [headers["range"] for headers in server.requests["/a.bin"]] == ["bytes=100000-"]


def test_a_file_that_changed_between_attempts_is_fetched_anew(server, tmp_path):
    new = BODY[::-1] + b"longer"
    link = Link(server.serve("a.bin", Reply(BODY, cut=100_000), Reply(new, etag='"2"')))
    assert get(link, tmp_path / "a.bin").read_bytes() == new
    assert server.requests["/a.bin"][1]["if-range"] == '"1"'


def test_a_changed_file_that_the_server_does_not_notice_is_caught_by_its_checksum(server, tmp_path):
    old = b"x" * len(BODY)
    link = Link(server.serve("a.bin", Reply(old, cut=100_000, etag=""), Reply(BODY, etag="")), sha256=SHA256)
    assert get(link, tmp_path / "a.bin").read_bytes() == BODY
    assert [headers.get("range") for headers in server.requests["/a.bin"]] == [None, "bytes=100000-", None]


def test_without_validator_or_checksum_a_later_call_starts_over(server, tmp_path):
    link = Link(server.serve("a.bin", Reply(BODY, cut=100_000, etag="")))
    fails(link, tmp_path / "a.bin", "the connection ended after 100000 of 300000 bytes; 1 attempts", attempts=1)
    server.serve("a.bin", Reply(BODY, etag='W/"weak"'))
    assert get(link, tmp_path / "a.bin").read_bytes() == BODY
    assert [headers.get("range") for headers in server.requests["/a.bin"]] == [None, None]


def test_a_date_stands_in_for_a_weak_etag(server, tmp_path):
    date = {"ETag": 'W/"1"', "Last-Modified": "Tue, 07 Jan 2025 10:00:00 GMT"}
    link = Link(server.serve("a.bin", Reply(BODY, cut=9, headers=date), Reply(BODY, etag=date["Last-Modified"])))
    assert get(link, tmp_path / "a.bin").read_bytes() == BODY
    assert server.requests["/a.bin"][1]["if-range"] == date["Last-Modified"]


def test_the_rest_of_another_address_is_not_continued(server, tmp_path):
    fails(
        Link(server.serve("old.bin", Reply(b"y" * 500, cut=100))),
        tmp_path / "a.bin",
        "the connection ended after 100 of 500 bytes; 1 attempts",
        attempts=1,
    )
    (tmp_path / ".a.bin.note.partial").write_text("broken")
    assert get(Link(server.serve("a.bin", BODY)), tmp_path / "a.bin").read_bytes() == BODY
    assert "range" not in server.requests["/a.bin"][0]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    link = Link(server.serve("a.bin", Reply(BODY, cut=100_000, ranges=False), Reply(BODY, ranges=False)))
    assert get(link, tmp_path / "a.bin").read_bytes() == BODY


def test_a_server_that_never_sends_the_whole_is_given_up(server, tmp_path):
    link = Link(server.serve("a.bin", Reply(BODY, cut=100, ranges=False)))
    fails(link, tmp_path / "a.bin", "the connection ended after 100 of 300000 bytes; 3 attempts")
    assert len(server.requests["/a.bin"]) == 3


def test_another_range_than_asked_for_is_not_appended(server, tmp_path):
    link = Link(server.serve("a.bin", Reply(BODY, cut=100), Reply(BODY, shift=5), BODY))
    assert get(link, tmp_path / "a.bin").read_bytes() == BODY


def test_a_whole_partial_needs_no_more_bytes(server, tmp_path):
    url = server.serve("a.bin", BODY)
    for known, asked in (({}, 1), ({"sha256": SHA256, "size": len(BODY)}, 0)):
        (tmp_path / ".a.bin.partial").write_bytes(BODY)
        (tmp_path / ".a.bin.note.partial").write_text(json.dumps({"url": url, "validator": '"1"', "total": len(BODY)}))
        assert get(Link(url, **known), tmp_path / "a.bin").read_bytes() == BODY  # 416 tells the size
        assert len(server.requests.pop("/a.bin", [])) == asked and left(tmp_path) == ["a.bin"]
        (tmp_path / "a.bin").unlink()


def test_a_partial_longer_than_the_file_starts_over(server, tmp_path):
    url = server.serve("a.bin", BODY)
    (tmp_path / ".a.bin.partial").write_bytes(BODY + b"more")
    (tmp_path / ".a.bin.note.partial").write_text(json.dumps({"url": url, "validator": '"1"'}))
    assert get(Link(url), tmp_path / "a.bin").read_bytes() == BODY


def test_pauses_grow_and_keep_to_what_the_server_asks(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "FIRST_PAUSE", 1.0)
    busy, long = Reply(status=500), Reply(status=429, headers={"Retry-After": "7"})
    pauses = []
    link = Link(server.serve("a.bin", busy, busy, busy, long, Reply(status=503, headers={"Retry-After": "900"}), BODY))
    assert get(link, tmp_path / "a.bin", attempts=9, pause=pauses.append).read_bytes() == BODY
    assert pauses == [1.0, 2.0, 4.0, 8.0, 60.0]


def test_a_slow_server_is_given_up(server, tmp_path):
    link = Link(server.serve("a.bin", Reply(BODY, cut=70_000, stall=True)))
    fails(link, tmp_path / "a.bin", "no answer in time after 70000 bytes; 1 attempts", attempts=1, timeout=0.2)
    assert (tmp_path / ".a.bin.partial").stat().st_size == 70_000


@pytest.mark.parametrize(
    ("reply", "known", "reason", "requests"),
    [
        (Reply(status=404), {}, "HTTP 404 Not Found", 1),
        (Reply(status=403), {}, "HTTP 403 Forbidden", 1),
        (Reply(status=500), {}, "HTTP 500 Internal Server Error; 3 attempts", 3),
        (Reply(BODY), {"size": 7}, "got a file of 300000 bytes; expected 7", 1),
        (Reply(BODY, length=400_000), {}, "the connection ended after 300000 of 400000 bytes; 3 attempts", 3),
        (Reply(BODY, length=99), {"sha256": SHA256}, "got the sha256 .*; expected " + SHA256, 1),
        (Reply(BODY, length=-1), {"size": 400_000}, "the connection ended after 300000 of 400000 bytes; 3 attempts", 3),
        (Reply(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"}), {}, "got an HTML page instead .*", 1),
        (Reply(BODY, headers={"Content-Encoding": "gzip"}), {}, "got the content encoding 'gzip', which .*", 1),
    ],
)
def test_bad_answers(server, tmp_path, reply, known, reason, requests):
    link = Link(server.serve("a.bin", reply), **known)
    with pytest.raises(
        DataError, match=rf"a.bin: not fetched \({reason}\); put it into {tmp_path} by hand; expected L$"
    ):
        fetch(link, tmp_path / "a.bin", layout="L")
    assert len(server.requests["/a.bin"]) == requests and not (tmp_path / "a.bin").exists()


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_checksum_leaves_nothing(server, tmp_path, algorithm):
    got = {"sha256": SHA256, "md5": MD5}[algorithm]
    link = Link(server.serve("a.bin", BODY), **{algorithm: "0" * len(got)})
    fails(link, tmp_path / "a.bin", f"got the {algorithm} {got}; expected {'0' * len(got)}")
    assert left(tmp_path) == [] and len(server.requests["/a.bin"]) == 1


def test_redirects_are_followed_with_their_range(server, tmp_path):
    server.serve("mirror.bin", Reply(BODY, cut=1000), BODY)
    link = Link(server.serve("a.bin", Reply(status=302, headers={"Location": "/mirror.bin"})), sha256=SHA256)
    assert get(link, tmp_path / "a.bin").read_bytes() == BODY
    assert server.requests["/mirror.bin"][1]["range"] == "bytes=1000-"


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/a", "data:,x", "gopher://a"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_elsewhere_are_refused(server, tmp_path, location, status):
    link = Link(server.serve("a.bin", Reply(status=status, headers={"Location": location})))
    fails(link, tmp_path / "a.bin", f"redirected to {location!r}; allowed: http | https")


def test_a_redirect_from_https_to_http_is_refused(tmp_path):
    request = web.urllib.request.Request("https://example.org/a")
    with pytest.raises(web.Final, match="redirected to 'http://example.org/a'; allowed: https"):
        web.Redirects().http_error_302(
            request, (tmp_path / "x").open("w"), 302, "Found", {"Location": "http://example.org/a"}
        )


def test_a_certificate_that_is_not_accepted_is_final(tmp_path, monkeypatch):
    class Opener:
        def open(self, request, timeout):
            raise web.URLError(
                web.ssl.SSLCertVerificationError(1, "certificate verify failed: self-signed certificate")
            )

    monkeypatch.setattr(web, "_opener", Opener)
    reason = "certificate not accepted: certificate verify failed: self-signed certificate"
    fails(Link("https://example.org/a.bin"), tmp_path / "a.bin", reason)


def test_a_redirect_loop_is_refused(server, tmp_path):
    server.serve("b.bin", Reply(status=302, headers={"Location": "/a.bin"}))
    link = Link(server.serve("a.bin", Reply(status=302, headers={"Location": "/b.bin"})))
    fails(link, tmp_path / "a.bin", "HTTP 302, redirected in a circle or to nowhere")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a.bin", "a.bin"])
def test_addresses_that_are_no_web_addresses(tmp_path, url):
    fails(Link(url), tmp_path / "a.bin", "the address is neither http nor https")


def test_nobody_answers(server, tmp_path):
    url = server.serve("a.bin", BODY)
    server.close()
    pauses = []
    fails(Link(url), tmp_path / "a.bin", "Connection refused; 3 attempts", pause=pauses.append)
    assert len(pauses) == 2 and left(tmp_path) == []


def test_a_name_that_does_not_resolve(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    fails(Link("http://nowhere.invalid/a"), tmp_path / "a", "Name or service not known; 1 attempts", attempts=1)


def test_disk_errors_are_one_line(server, tmp_path, monkeypatch):
    link = Link(server.serve("a.bin", BODY))
    (tmp_path / "file").write_text("")
    fails(link, tmp_path / "file" / "a.bin", "disk: File exists")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    fails(link, tmp_path / "a.bin", "the disk has 1,000 bytes left and 300,000 are missing")
    assert left(tmp_path) == ["file"]


def test_a_full_disk_while_writing(server, tmp_path, monkeypatch):
    def full(self, block):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(download.Partial, "append", full)
    fails(Link(server.serve("a.bin", BODY)), tmp_path / "a.bin", "disk: No space left on device")
    assert len(server.requests["/a.bin"]) == 1


def test_one_process_fetches_at_a_time(server, tmp_path):
    url = server.serve("a.bin", BODY)
    partial = tmp_path / ".a.bin.partial"
    with download.open_partial(tmp_path / "a.bin", url):
        fails(Link(url), tmp_path / "a.bin", f"another process is writing {partial}")
        assert partial.exists()


# ---- archives


@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_an_archive_is_fetched_unpacked_and_removed(server, tmp_path, make):
    archive = make(tmp_path / "made", {"images/1.jpg": b"one", "images/deep/2.jpg": b"two", "README": b"?"})
    link = Link(server.serve("images.bin", archive.read_bytes()))
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "labels.csv").write_text("kept")
    folder = fetch_and_unpack(link, tmp_path / "raw", layout="L", member="images")
    assert folder == tmp_path / "raw" / "images" and left(folder) == ["1.jpg", "deep"]
    assert left(tmp_path / "raw") == ["images", "labels.csv"] and (folder / "deep" / "2.jpg").read_bytes() == b"two"
    assert left(fetch_and_unpack(link, tmp_path / "all", layout="L")) == ["README", "images"]
    assert left(tmp_path) == ["all", "made", "raw"]


def test_an_archive_that_lies_there_is_used_and_kept(server, tmp_path):
    body = zip_of(tmp_path / "images.zip", {"images/1.jpg": b"one"}).read_bytes()
    link = Link(server.url("images.zip"), sha256=hashlib.sha256(body).hexdigest())
    assert left(fetch_and_unpack(link, tmp_path, layout="L", member="images")) == ["1.jpg"]
    assert left(tmp_path) == ["images", "images.zip"] and not server.requests


def test_an_archive_that_lies_there_damaged_is_named(server, tmp_path):
    (tmp_path / "images.zip").write_bytes(b"12")
    with pytest.raises(DataError, match=r"images.zip is there, but got 2 bytes; expected 7\); put .* expected L"):
        fetch_and_unpack(Link(server.url("images.zip"), size=7), tmp_path, layout="L", member="images")


@pytest.mark.parametrize("body", [b"no archive at all", b""])
def test_what_is_no_archive_is_removed_and_fetched_anew(server, tmp_path, body):
    good = zip_of(tmp_path / "good", {"images/1.jpg": b"one"}).read_bytes()
    link = Link(server.serve("images.zip", Reply(body, etag=""), good))
    with pytest.raises(DataError, match=r"images.zip: not fetched \(not a whole zip or tar archive .*; expected L$"):
        fetch_and_unpack(link, tmp_path / "raw", layout="L", member="images")
    assert left(tmp_path / "raw") == []
    assert left(fetch_and_unpack(link, tmp_path / "raw", layout="L", member="images")) == ["1.jpg"]


def test_a_refused_archive_leaves_nothing(server, tmp_path):
    body = tar_of(tmp_path / "made", {"images/1.jpg": b"one", "../evil": b"x"}).read_bytes()
    with pytest.raises(DataError, match=r"not fetched \(refused, the member '../evil' is a path with '..'; allowed"):
        fetch_and_unpack(Link(server.serve("images.tar", body)), tmp_path / "raw", layout="L", member="images")
    assert left(tmp_path / "raw") == [] and left(tmp_path) == ["made", "raw"]


def test_a_fetched_archive_waits_for_room_on_the_disk(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    link = Link(server.serve("images.zip", zip_of(tmp_path / "made", {"images/1.jpg": b"one"}).read_bytes()))
    with monkeypatch.context() as patch:
        patch.setattr("fairquant.artifacts._sync", full)
        with pytest.raises(DataError, match="not unpacked into .*images .No space left on device"):
            fetch_and_unpack(link, tmp_path / "raw", layout="L", member="images")
    assert left(tmp_path / "raw") == [".images.zip.fetched.partial"]
    assert left(fetch_and_unpack(link, tmp_path / "raw", layout="L", member="images")) == ["1.jpg"]
    assert left(tmp_path / "raw") == ["images"] and len(server.requests["/images.zip"]) == 1


def test_a_killed_download_goes_on(server, tmp_path):
    """A process that is killed in the middle leaves what the next one continues."""
    link = Link(server.serve("a.bin", Reply(BODY, cut=100_000, stall=True), BODY))
    code = (
        "from pathlib import Path; from fairquant.data.download import Link, fetch; "
        f"fetch(Link({link.url!r}), Path({str(tmp_path / 'a.bin')!r}), layout='L')"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    partial = tmp_path / ".a.bin.partial"
    while process.poll() is None and not (partial.is_file() and partial.stat().st_size == 100_000):
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert get(link, tmp_path / "a.bin").read_bytes() == BODY and left(tmp_path) == ["a.bin"]
    assert server.requests["/a.bin"][1]["range"] == "bytes=100000-"

"""Web addresses, opened by the standard library: http and https only, and every failure in words.

A failure is ``Passing`` (worth another attempt: no answer, a lost connection, 5xx) or ``Final`` (404, a refused
redirect, a certificate that is not accepted).
"""

from __future__ import annotations

import ssl
import urllib.request
from email.message import Message
from http.client import HTTPException, HTTPResponse, InvalidURL
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

RETRIED_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
NO_SUCH_RANGE = 416


class Passing(Exception):
    """A failure that may be gone at the next attempt; ``wait`` is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        """Keep the reason in words."""
        super().__init__(reason)
        self.wait = wait


class Final(Exception):
    """A failure that no further attempt mends."""


class NoSuchRange(Exception):
    """HTTP 416; ``total`` is the file's size where the server tells it."""

    def __init__(self, total: int | None) -> None:
        """Keep the size."""
        super().__init__("HTTP 416")
        self.total = total


def open_address(url: str, headers: dict[str, str], *, timeout: float) -> HTTPResponse:
    """Send a GET request and return the 2xx answer; redirects are followed.

    Args:
        url: http or https address.
        headers: what to send besides the user agent.
        timeout: seconds without a byte, for the connection and every later read.

    Raises:
        Passing: an attempt that may work next time.
        Final: an attempt that will not.
        NoSuchRange: the server has no such range.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise Final("the address is neither http nor https")
    request = urllib.request.Request(url, headers={"User-Agent": "fairquant", **headers})
    try:
        response: HTTPResponse = _opener().open(request, timeout=timeout)
    except HTTPError as error:
        with error:
            raise _judge(error) from None
    except URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Final(f"certificate not accepted: {reason_of(error.reason)}") from None
        raise Passing(reason_of(error.reason)) from None
    except InvalidURL as error:
        raise Final(str(error)) from None
    except (HTTPException, OSError) as error:
        raise Passing(reason_of(error)) from None
    return response


def _judge(error: HTTPError) -> Exception:
    """Return what an answer other than 2xx means."""
    if 300 <= error.code < 400:
        return Final(f"HTTP {error.code}, redirected in a circle or to nowhere")
    if error.code == NO_SUCH_RANGE:
        return NoSuchRange(content_range(error.headers)[1])
    text = f"HTTP {error.code} {error.msg}".strip()
    if error.code in RETRIED_STATUS:
        wait = error.headers.get("Retry-After", "")
        return Passing(text, float(wait) if wait.isdigit() else 0.0)
    return Final(text)


def content_range(headers: Message) -> tuple[int, int | None]:
    """Return (start, total) of "bytes START-END/TOTAL"; the start is -1 where there is none.

    >>> header = Message()
    >>> header["Content-Range"] = "bytes 100-199/1000"
    >>> content_range(header)
    (100, 1000)
    """
    unit, _, rest = headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    start = span.partition("-")[0]
    return (int(start) if unit == "bytes" and start.isdigit() else -1), int(total) if total.isdigit() else None


def reason_of(error: BaseException | str) -> str:
    """Return in words why a connection failed."""
    if isinstance(error, TimeoutError) or "timed out" in str(error):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https addresses, and from https to https only."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """Refuse an address that is no web address; leave the rest, loops included, to the standard library."""
        location = headers.get("Location", "")
        scheme = urlsplit(location).scheme.lower()
        if scheme not in ("http", "https", "") or (req.type == "https" and scheme == "http"):
            fp.close()
            raise Final(f"redirected to {location!r}; allowed: {'https' if req.type == 'https' else 'http | https'}")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that knows http and https alone (and the proxies of the environment)."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        Redirects(),
    ):
        opener.add_handler(handler)
    return opener

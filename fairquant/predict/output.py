"""Predictions as people and programs read them: an aligned table, a csv; written while they are made.

The csv is UTF-8 with the columns image, class, probability and one with the probability of each class, named by the
class. Where a class is itself called image, class or probability, all of these are named "probability of <class>".
Six significant digits. Names that are no text (a file system allows any bytes) and, in the table, what cannot be
printed are shown with backslashes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fairquant.artifacts import CsvWriter, atomic_path
from fairquant.errors import UserError
from fairquant.predict.predictor import Prediction

COLUMNS = ("image", "class", "probability")
Write = Callable[[Prediction], object]


def columns(classes: Sequence[str]) -> list[str]:
    """Return the csv's header.

    >>> columns(["benign", "malignant"])
    ['image', 'class', 'probability', 'benign', 'malignant']
    >>> columns(["class", "other"])[3:]
    ['probability of class', 'probability of other']
    """
    mixed_up = set(classes) & set(COLUMNS)
    return [*COLUMNS, *(f"probability of {name}" if mixed_up else name for name in classes)]


def csv_writer(file: TextIO, classes: Sequence[str]) -> Write:
    """Write the header to ``file`` and return what writes one row."""
    writer = CsvWriter(file)
    writer.writerow(columns(classes))

    def write(prediction: Prediction) -> None:
        numbers = [prediction.probability, *prediction.probabilities.values()]
        writer.writerow([as_text(prediction.image), prediction.label, *(f"{number:.6g}" for number in numbers)])

    return write


def table_writer(file: TextIO, classes: Sequence[str], images: Sequence[Path], top: int) -> Write:
    """Write the table's head to ``file`` and return what writes one line: image and its ``top`` classes."""
    count = min(top, len(classes))
    widths = [max(len(text) for text in ("image", *map(printable, images)))]
    widths += [max(len(text) for text in ("class", *map(printable, classes)))] * count

    def line(image: str, cells: Sequence[tuple[str, str]]) -> None:
        parts = [f"{image:<{widths[0]}}"]
        parts += [f"{name:<{width}}  {number:>11}" for (name, number), width in zip(cells, widths[1:], strict=True)]
        file.write("  ".join(parts) + "\n")

    def write(prediction: Prediction) -> None:
        best = [(printable(name), f"{number:.4f}") for name, number in prediction.top(count)]
        line(printable(prediction.image), best)

    line("image", [("class", "probability")] * count)
    return write


def as_text(value: str | Path) -> str:
    r"""Return ``value`` as text that UTF-8 can hold.

    >>> as_text("caf\udce9.jpg")
    'caf\\udce9.jpg'
    """
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def printable(value: str | Path) -> str:
    r"""Return ``value`` on one line that a terminal shows.

    >>> printable("a\nb é 悪.jpg")
    'a\\nb é 悪.jpg'
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(value)
    )


@contextmanager
def written_whole(out: Path, *, keep: Sequence[Path]) -> Iterator[TextIO]:
    """Yield a text file that appears as ``out`` when all went well, or not at all.

    Raises ``UserError`` where ``out`` cannot be written, is no ordinary file, or is one of ``keep``, the files read.
    """
    if not out.parent.is_dir():
        raise UserError(f"--out: got {out}, but {out.parent} is no folder; allowed: a file in a folder that exists")
    if out.exists() and not out.is_file():
        raise UserError(f"--out: got {out}, which is no file; allowed: a csv file, or - for standard output")
    if out.exists() and any(out.samefile(path) for path in keep):
        raise UserError(f"--out: got {out}, which is read here; allowed: a csv file of its own")
    try:
        with atomic_path(out) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror or error})") from None

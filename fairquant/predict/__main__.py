"""What an exported model says of image files: ``python -m fairquant.predict model.onnx images/``.

Prints a table, or writes a csv (``--out``). Exit code 0: every image was read; 1: some could not be, each is named on
stderr, the others are predicted; 2: a mistake, nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from fairquant.errors import UserError
from fairquant.export.runtimes import RUNTIMES
from fairquant.predict.images import Unreadable, find_images
from fairquant.predict.output import Write, csv_writer, printable, table_writer, written_whole
from fairquant.predict.predictor import Predictor
from fairquant.terminal import any_text, silence

SOON = 2.0
"""Seconds after which progress is shown."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except UserError as error:
        _complain(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads our output has seen enough
        silence()
        return 0
    except OSError as error:
        _complain(f"{error.filename or 'standard output'}: {error.strerror or error}")
        silence()
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fairquant.predict", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="model.onnx, or packed.safetensors (which needs torch)")
    parser.add_argument("images", nargs="+", help="image files, and folders of images")
    parser.add_argument("--out", help="csv to write, - for standard output; without it a table is printed")
    parser.add_argument("--recursive", action="store_true", help="look into folders in folders")
    parser.add_argument("--top", type=_count, default=1, help="classes shown for an image in the table, default 1")
    parser.add_argument("--runtime", choices=sorted(RUNTIMES), default="onnxruntime", help="default onnxruntime")
    parser.add_argument("--threads", type=_threads, help="default: one for each available core")
    parser.add_argument("--batch-size", type=_count, help="default 16; 1 where activations have dynamic ranges")
    return parser


def _count(text: str) -> int:
    return _whole(text, 1_000_000)


def _threads(text: str) -> int:
    return _whole(text, 1024)


def _whole(text: str, most: int) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 4300 else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: a whole number, at least 1")
    if number > most:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: at most {most}")
    return number


def _run(options: argparse.Namespace) -> int:
    images = find_images(options.images, recursive=options.recursive)
    sizes = {"threads": options.threads, "batch_size": options.batch_size}
    predictor = Predictor.open(options.model, runtime=options.runtime, **sizes)
    unreadable = 0
    with _output(options, predictor, images) as write, _progress(len(images), options.out) as advance:
        for answer in predictor.each(images):
            if isinstance(answer, Unreadable):
                unreadable += 1
                _complain(str(answer))
            else:
                write(answer)
            advance()
    if unreadable:
        _complain(f"{unreadable} of {len(images)} images could not be read")
    return 1 if unreadable else 0


@contextmanager
def _output(options: argparse.Namespace, predictor: Predictor, images: Sequence[Path]) -> Iterator[Write]:
    """Yield what writes one prediction to where the options say."""
    classes = predictor.metadata.spec.classes
    if options.out is not None and options.out != "-":
        with written_whole(Path(options.out), keep=[Path(options.model), *images]) as file:
            yield csv_writer(file, classes)
        return
    stream = any_text(sys.stdout)
    yield csv_writer(stream, classes) if options.out else table_writer(stream, classes, images, options.top)
    stream.flush()


@contextmanager
def _progress(total: int, out: str | None) -> Iterator[Callable[[], object]]:
    """Yield what to call after each image; a bar on stderr, but for a terminal that sees the rows themselves."""
    rows_seen = out in (None, "-") and sys.stdout.isatty()
    with tqdm(total=total, desc="predict", unit="image", delay=SOON, disable=True if rows_seen else None) as bar:
        yield bar.update


def _complain(text: str) -> None:
    tqdm.write(f"error: {printable(text)}", file=any_text(sys.stderr))


if __name__ == "__main__":
    raise SystemExit(main())

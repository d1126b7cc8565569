import io
import os
import pickle
import pickletools

import numpy as np
import pytest

from fairquant.data.plain_pickle import ByteArray, read_plain_pickle
from fairquant.errors import DataError
from tests.data.pickles import python2_dumps

VALUE = {"data": np.arange(24, dtype=np.uint8).reshape(2, 12), "labels": [3, 9], "name": "batch 1", "rest": (None, 1.5)}


def read(tmp_path, data):
    (tmp_path / "batch").write_bytes(data)
    return read_plain_pickle(tmp_path / "batch")


def test_python_2_pickles_hold_what_the_published_ones_do():
    names = [argument for opcode, argument, _ in pickletools.genops(python2_dumps(VALUE)) if opcode.name == "GLOBAL"]
    assert names == ["numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"]
    back = pickle.loads(python2_dumps(VALUE).replace(b"numpy.core", b"numpy._core"), encoding="latin-1")
    assert np.array_equal(back["data"], VALUE["data"])


@pytest.mark.parametrize(
    "data", [python2_dumps(VALUE), *(pickle.dumps(VALUE, protocol=number) for number in range(6))], ids=range(7)
)
def test_plain_values_and_byte_arrays(tmp_path, data):
    found = read(tmp_path, data)
    array = found.pop("data")
    assert array == ByteArray((2, 12), bytes(range(24)))
    assert found == {"labels": [3, 9], "name": "batch 1", "rest": (None, 1.5)}


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


class EvilState:
    def __reduce__(self):
        return exec, ("import os; os.mkdir('evil')",)


def persistent():
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return "outside" if value == "x" else None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(["x"])
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            pickle.dumps(Evil()),
            "refused, got the name posix.mkdir; allowed: a pickle of plain values and arrays of bytes",
        ),
        (
            pickle.dumps({"data": [EvilState()]}),
            "refused, got the name builtins.exec; allowed: a pickle of plain values",
        ),
        (b"cos\nsystem\n(S'mkdir evil'\ntR.", "refused, got the name os.system; allowed"),
        (b"cnumpy.testing._private.utils\nrunstring\n(S'1'\nS'2'\ntR.", "refused, got the name numpy.testing._private"),
        (
            b"c__builtin__\ngetattr\n.",
            "refused, got the name builtins.getattr|refused, got the name __builtin__.getattr",
        ),
        (persistent(), "refused, got a reference to something outside the file"),
        (pickle.dumps(np.arange(3)), "refused, got an array of other than unsigned bytes in C order"),
        (
            pickle.dumps(np.zeros((2, 3), np.uint8, order="F"), protocol=2),
            "refused, got an array of other than unsigned",
        ),
        (pickle.dumps(np.array([{}], object)), "refused, got an array of other than unsigned bytes"),
        (pickle.dumps(VALUE)[:-20], "not a whole pickle|refused, got pickle data was truncated"),
        (b"", "not a whole pickle .EOFError"),
        (b"\x80\x02garbage", "refused, got|not a whole pickle"),
        (b"cnumpy\nndarray\n}S'a'\nI1\nsb.", "not a whole pickle"),
    ],
    ids=range(13),
)
def test_nothing_a_file_names_is_run(tmp_path, monkeypatch, data, reason):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=reason) as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{tmp_path / 'batch'}: ")
    assert not (tmp_path / "evil").exists()


def test_an_absent_file(tmp_path):
    with pytest.raises(DataError, match="none: not readable .No such file"):
        read_plain_pickle(tmp_path / "none")

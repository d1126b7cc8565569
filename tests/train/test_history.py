"""The files of a training run, letter by letter."""

from __future__ import annotations

from fairquant.train.history import EpochRow, History, describe

ROWS = (
    EpochRow(1, 0.01, 0.7, 0.65, 0.5, 0.25, {"female × <60": 0.25, "0.5, rest": None}),
    EpochRow(2, 0.005, 1 / 3, 0.5, 0.75, 0.75, {"female × <60": 0.75, "0.5, rest": None}),
)
HISTORY = History(("female × <60", "0.5, rest"), ROWS, 2)


def test_curve(tmp_path):
    HISTORY.write_curve(tmp_path / "curve.csv")
    assert (tmp_path / "curve.csv").read_text(encoding="utf-8") == (
        "epoch,lr,train_loss,val_loss,val_accuracy,val_worst_group_accuracy,"
        'val_accuracy female × <60,"val_accuracy 0.5, rest"\n'
        "1,0.01,0.7,0.65,0.5,0.25,0.25,\n"
        "2,0.005,0.333333,0.5,0.75,0.75,0.75,\n"
    )


def test_log(tmp_path):
    HISTORY.write_log(tmp_path / "training.log")
    assert (tmp_path / "training.log").read_text(encoding="utf-8") == (
        "epoch 1: lr 0.01, train loss 0.7000, val loss 0.6500, val accuracy 0.5000, worst group 0.2500\n"
        "    female × <60: 0.2500\n"
        "    0.5, rest: no validation samples\n"
        "epoch 2: lr 0.005, train loss 0.3333, val loss 0.5000, val accuracy 0.7500, worst group 0.7500\n"
        "    female × <60: 0.7500\n"
        "    0.5, rest: no validation samples\n"
        "kept epoch 2: val loss 0.5000, val accuracy 0.7500, worst group 0.7500\n"
    )


def test_nothing_trained(tmp_path):
    History(("a", "b")).write_curve(tmp_path / "curve.csv")
    History().write_log(tmp_path / "training.log")
    assert (tmp_path / "curve.csv").read_text().count("\n") == 1
    assert (tmp_path / "training.log").read_text() == "nothing was trained\n"


def test_rows_survive_a_dict():
    assert EpochRow(**ROWS[0].to_dict()) == ROWS[0]


def test_description_counts_epochs():
    assert describe(ROWS[1], 9).startswith("epoch 2/9: lr 0.005,")

"""What every method of post-processing must do, whatever it makes equal."""

from __future__ import annotations

import numpy as np
import pytest

from fairquant import plugins
from fairquant.config import Config, Section
from fairquant.config.load import parse_config
from fairquant.errors import ConfigError
from fairquant.postprocess._fitted import Scores
from tests.postprocess.samples import GROUPS, fit, sample

NAMES = plugins.names("postprocess")


@pytest.mark.parametrize("name", NAMES)
class TestEveryMethod:
    def test_chances_are_probabilities_and_repeat_themselves(self, name):
        scores, positives, members = sample()
        one, two = (fit(name, scores, positives, members) for _ in range(2))
        chance = one.chance(scores, members)
        assert chance.shape == (len(members),) and ((chance >= 0) & (chance <= 1)).all()
        assert np.array_equal(chance, two.chance(scores, members))
        assert one.settings() == two.settings()
        assert set(one.settings()) == set(GROUPS)
        assert all(np.isfinite(list(row.values())).all() for row in one.settings().values())

    def test_does_not_depend_on_the_numbering_of_groups(self, name):
        scores, positives, members = sample()
        places = np.array([2, 0, 1])
        names = [GROUPS[g] for g in np.argsort(places)]
        plain = fit(name, scores, positives, members)
        moved = fit(name, scores, positives, places[members], groups=names)
        np.testing.assert_allclose(moved.chance(scores, places[members]), plain.chance(scores, members), atol=1e-12)
        for group, row in plain.settings().items():
            assert moved.settings()[group] == pytest.approx(row)

    def test_does_not_depend_on_the_order_of_samples(self, name):
        scores, positives, members = sample()
        order = np.random.default_rng(1).permutation(len(members))
        shuffled = Scores(scores.probability[order], scores.decision[order])
        plain = fit(name, scores, positives, members)
        moved = fit(name, shuffled, positives[order], members[order])
        np.testing.assert_allclose(moved.chance(scores, members), plain.chance(scores, members), atol=1e-12)

    def test_drawn_decisions_have_these_chances(self, name):
        scores, positives, members = sample()
        fitted = fit(name, scores, positives, members)
        draws = np.mean([fitted.predict(scores, members, seed=seed) for seed in range(400)], axis=0)
        chance = fitted.chance(scores, members)
        assert np.array_equal(draws[(chance == 0) | (chance == 1)], chance[(chance == 0) | (chance == 1)])
        assert np.abs(draws - chance).max() < 5 * np.sqrt(0.25 / 400)
        assert np.array_equal(fitted.predict(scores, members, seed=3), fitted.predict(scores, members, seed=3))

    def test_one_group_keeps_its_decisions(self, name, caplog):
        scores, positives, _ = sample()
        alone = np.zeros(len(positives), np.int64)
        fitted = fit(name, scores, positives, alone, groups=("all",))
        assert np.array_equal(fitted.chance(scores, alone), scores.decision) and fitted.settings() == {}
        text = f"evaluate.postprocess: {name}: fewer than two groups to make equal; nothing is changed"
        assert caplog.messages == [text]

    def test_groups_it_cannot_be_fitted_for_keep_their_decisions_and_are_named(self, name, caplog):
        """The fourth group has no samples."""
        scores, positives, members = sample()
        fitted = fit(name, scores, positives, members, groups=(*GROUPS, "nobody"))
        assert np.array_equal(fitted.chance(scores, np.full_like(members, 3)), scores.decision)
        assert list(fitted.settings()) == list(GROUPS)
        assert caplog.messages == [
            f"evaluate.postprocess: {name}: too few validation samples to fit on in 'nobody' (0 of the positive class, "
            "0 of the other); left with the model's decisions"
        ]

    def test_unknown_members_keep_their_decisions(self, name):
        scores, positives, members = sample()
        outside = np.full_like(members, -1)
        assert np.array_equal(fit(name, scores, positives, members).chance(scores, outside), scores.decision)

    def test_options_are_frozen_and_refuse_the_unknown(self, name):
        assert issubclass(plugins.load("postprocess", name).Options, Section)
        message = rf"^params.yaml: evaluate\.postprocessors\.{name}\.ghost: unknown key.*, got 1; allowed: "
        with pytest.raises(ConfigError, match=message):
            parse_config({"evaluate": {"postprocessors": {name: {"ghost": 1}}}})


def test_scores_are_softmax_and_argmax():
    logits = np.array([[0.0, 0.0], [1.0, 3.0], [800.0, -800.0], [-800.0, 800.0]], np.float32)
    expected = 1 / (1 + np.exp(-np.clip(logits[:, 1].astype(float) - logits[:, 0], -700, 700)))
    scores = Scores.of(logits, 1)
    np.testing.assert_allclose(scores.probability, expected, atol=1e-15)
    assert scores.decision.tolist() == [False, True, False, True]
    other = Scores.of(logits, 0)
    np.testing.assert_allclose(other.probability, 1 - expected, atol=1e-15)
    assert other.decision.tolist() == [True, False, True, False]  # of equal logits the first class is predicted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"postprocess": ["magic"]},
            "evaluate.postprocess.0: got 'magic'; allowed: calibrated_equalized_odds | thresholds",
        ),
        (
            {"postprocessors": {"magic": {}}},
            "evaluate.postprocessors.magic: unknown key, got {}; allowed: calibrated_equalized_odds | thresholds",
        ),
        (
            {"postprocessors": {"calibrated_equalized_odds": {"cost": "fdr"}}},
            "evaluate.postprocessors.calibrated_equalized_odds.cost: got 'fdr'; allowed: fnr | fpr | weighted",
        ),
        (
            {"postprocessors": {"thresholds": {"constraint": "x"}}},
            "evaluate.postprocessors.thresholds.constraint: got 'x'; allowed: demographic_parity | equalized_odds",
        ),
    ],
)
def test_mistakes_are_one_line(values, message):
    with pytest.raises(ConfigError) as error:
        parse_config({"evaluate": values})
    assert str(error.value) == f"params.yaml: {message}"


def test_options_are_those_of_params_yaml():
    section = {"postprocess": list(NAMES), "postprocessors": {"thresholds": {"constraint": "demographic_parity"}}}
    config = Config(evaluate=section)
    assert config.options("postprocess", "thresholds").constraint == "demographic_parity"
    assert config.options("postprocess", "calibrated_equalized_odds").cost == "weighted"

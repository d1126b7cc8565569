import re

import numpy as np
import pytest
from pydantic import ValidationError

from fairquant.errors import ConfigError
from fairquant.reduce import subtractive
from fairquant.reduce.subtractive import Options


def test_sign_is_kept_and_beta_weighs_the_privileged():
    maps = np.array([[1, 5], [3, 2]], dtype=np.float32)
    options = Options(unprivileged="a", privileged="b")
    assert subtractive.reduce(maps, options, groups=["a", "b"]).tolist() == [-2.0, 3.0]
    options = Options(unprivileged="a", privileged="b", beta=0.5)
    assert subtractive.reduce(maps, options, groups=["a", "b"]).tolist() == [-0.5, 4.0]
    assert Options().beta == 1.0


@pytest.mark.parametrize(
    "options, groups, line",
    [
        (
            {"unprivileged": "I", "privileged": "II"},
            ["I", "II", "III", "IV", "V", "VI"],
            "reducer: got 'subtractive' with 6 groups (I, II, III, IV, V, VI); allowed: exactly two groups",
        ),
        (
            {"unprivileged": "x", "privileged": "b"},
            ["a", "b"],
            "assign.reducers.subtractive.unprivileged: got 'x'; allowed: one of the groups a | b",
        ),
        (
            {"unprivileged": "a", "privileged": "female × <60"},
            ["a", "b"],
            "assign.reducers.subtractive.privileged: got 'female × <60'; allowed: one of the groups a | b",
        ),
        (
            {},
            ["a", "b"],
            "assign.reducers.subtractive.unprivileged: got null; "
            "allowed: a group name (reducer: subtractive needs both)",
        ),
        (
            {"unprivileged": "a"},
            ["a", "b"],
            "assign.reducers.subtractive.privileged: got null; allowed: a group name (reducer: subtractive needs both)",
        ),
        (
            {"unprivileged": "a", "privileged": "a"},
            ["a", "b"],
            "assign.reducers.subtractive.privileged: got 'a' for both; allowed: two different groups",
        ),
    ],
)
def test_impossible_groups_are_one_line(options, groups, line):
    with pytest.raises(ConfigError, match=f"^{re.escape(line)}$"):
        subtractive.check_groups(Options(**options), groups)


def test_negative_beta_is_refused():
    with pytest.raises(ValidationError):
        Options(beta=-1)

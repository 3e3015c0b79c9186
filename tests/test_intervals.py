"""The quantile behind every interval."""

import pytest
from scipy import stats

from gradhat.intervals import student_t


def test_the_quantile_of_student_is_within_a_percent() -> None:
    for freedom in range(1, 60):
        assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)

"""The numbers behind a curve: thinning, smoothing, and how numbers are written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlbook.widgets._series import Series, short, smooth, sparkline, thin


def test_collects_points():
    series = Series()
    for i in range(5):
        series.append(10 * i, i / 2)
    x, y = series.values(1, 3)
    assert x.tolist() == [10.0, 20.0]
    assert y.tolist() == [0.5, 1.0]
    assert len(series) == 5


def test_smooth_has_no_bias_towards_zero():
    # weights of the last values: 1 | 1/3, 2/3 | 1/7, 2/7, 4/7
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0, 3.0]), 0.5), [1, 5 / 3, 17 / 7])


def test_smooth_skips_what_is_not_finite():
    smoothed = smooth(np.array([np.nan, 2.0, np.inf, 2.0]), 0.9)
    assert np.isnan(smoothed[0])
    np.testing.assert_allclose(smoothed[1:], 2.0)


def test_no_smoothing_returns_the_curve():
    np.testing.assert_allclose(smooth(np.array([1.0, 5.0, -2.0]), 0.0), [1, 5, -2])


def test_thin_leaves_a_short_curve_alone():
    x, y = np.arange(5.0), np.arange(5.0) ** 2
    thinned = thin(x, y, 5)
    assert thinned[0].tolist() == x.tolist()
    assert thinned[1].tolist() == thinned[2].tolist() == y.tolist()


def test_thin_keeps_peaks_ends_and_means():
    y = np.zeros(1000)
    y[437], y[438] = 50.0, -20.0
    x, thinned, means = thin(np.arange(1000.0), y, 50)
    assert len(x) <= 50
    assert (thinned.max(), thinned.min()) == (50.0, -20.0)
    assert (x[0], x[-1]) == (0.0, 999.0)
    assert x[thinned.argmax()] == 437
    # stretches of ceil(1000 / 24) = 42: the peaks share one, whose mean is 30 / 42
    assert means[thinned.argmax()] == pytest.approx(30 / 42)
    assert means[0] == 0.0


def test_thin_knows_gaps():
    y = np.full(400, np.nan)
    y[100] = 1.0
    x, thinned, means = thin(np.arange(400.0), y, 40)
    assert 100.0 in x
    assert np.nanmax(thinned) == np.nanmax(means) == 1.0
    assert np.isnan(means).sum() > 0


@given(n=st.integers(1, 500), points=st.integers(3, 60))
def test_thin_never_gives_more_points_and_never_leaves_order(n, points):
    y = np.sin(np.arange(n) * 1.7)
    x, thinned, means = thin(np.arange(n, dtype=float), y, points)
    assert len(x) == len(thinned) == len(means) <= max(points, 3)
    assert (np.diff(x) > 0).all()
    assert (thinned.max(), thinned.min()) == (y.max(), y.min())


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, "0"),
        (0.034127, "0.0341"),
        (-0.000031, "-3.1e-05"),
        (312.44, "312.4"),
        (1234.5, "1,234"),
        (20_480, "20.48k"),
        (3_000_000, "3M"),
        (float("nan"), "nan"),
    ],
)
def test_short_numbers(value, text):
    assert short(value) == text


def test_sparkline():
    assert sparkline(np.array([0.0, 1.0, 2.0, 7.0])) == "▁▂▃█"
    assert sparkline(np.array([3.0, 3.0])) == "▁▁"
    assert sparkline(np.array([np.nan])) == ""

"""Charts: where things lie in a drawing."""

from __future__ import annotations

import math

import pytest

from xares_bench.reports.charts import cost_chart, line_chart, radar_chart, round_ticks, thinned


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (0, 700, (0, 200, 400, 600, 800)),
        (-0.05, 0.4, (-0.1, 0, 0.1, 0.2, 0.3, 0.4)),
        (3, 3, (3, 3.2, 3.4, 3.6, 3.8, 4)),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: tuple[float, ...]) -> None:
    assert round_ticks(low, high) == pytest.approx(expected)


def test_a_curve_spans_the_plane() -> None:
    chart = line_chart({"loss": [(1, 5.0), (100, 0.0)]})
    (series,) = chart.series
    assert series.points[-1] == (chart.right, chart.bottom)
    assert series.points[0][1] == chart.top, "the highest tick is the highest value"
    assert [tick.label for tick in chart.y_ticks] == ["0", "1", "2", "3", "4", "5"]
    assert all(chart.left <= tick.place <= chart.right for tick in chart.x_ticks)


def test_costs_are_logarithmic() -> None:
    chart = cost_chart({"1": (0.001, 0.2), "2": (0.01, 0.4), "3": (0.1, 0.4)}, level=0.4)
    (x1, y1), (x2, y2), (x3, _) = (series.points[0] for series in chart.series)
    assert x2 - x1 == pytest.approx(x3 - x2)
    assert y2 < y1
    assert chart.level == pytest.approx(y2)
    assert {"0.001", "0.01", "0.1"} <= {tick.label for tick in chart.x_ticks}


def test_a_single_run_has_a_cost_chart() -> None:
    chart = cost_chart({"1": (0.004, 0.0)}, level=None)
    x, y = chart.series[0].points[0]
    assert chart.left < x < chart.right
    assert y == chart.bottom
    assert [tick.label for tick in chart.x_ticks] == ["0.002", "0.005", "0.01"]


def test_a_radar_goes_around_from_the_top() -> None:
    chart = radar_chart(["a", "b", "c", "d"], {"run": [1, 0.5, -0.1, 1.2]})
    first, second, third, fourth = chart.series[0].points
    centre, radius = chart.size / 2, 170
    assert first == pytest.approx((centre, centre - radius))
    assert second == pytest.approx((centre + radius / 2, centre))
    assert third == pytest.approx((centre, centre)), "below 0 is drawn as 0"
    assert fourth == pytest.approx((centre - radius, centre)), "above 1 as 1"
    assert [spoke.anchor for spoke in chart.spokes] == ["middle", "start", "middle", "end"]


def test_thinned_points_are_means() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 1001)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert few[-1] == (1000, 0.5)
    assert thinned(points[:5], 100) == points[:5]
    assert math.isclose(sum(y for _, y in few), 50)

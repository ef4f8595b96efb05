"""Charts: coordinates of lines, points and labels, in the units of an SVG's view box.

The SVG itself is written by the template, which escapes every text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on an axis, and its label."""

    place: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points that are drawn together.

    Attributes:
        name: Their name in the legend.
        points: Their coordinates.
    """

    name: str
    points: tuple[Point, ...]

    @property
    def path(self) -> str:
        """The points in SVG's notation."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True, kw_only=True)
class Plane:
    """A chart with two axes.

    Attributes:
        width: Width of the view box.
        height: Its height.
        left: The vertical axis.
        right: The end of the horizontal axis.
        top: The end of the vertical axis.
        bottom: The horizontal axis.
        x_ticks: Marks of the horizontal axis.
        y_ticks: Marks of the vertical axis.
        series: The curves or points.
        level: Height of a horizontal line, or None.
    """

    width: float = 720
    height: float = 300
    left: float = 70
    right: float = 700
    top: float = 16
    bottom: float = 246
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Series, ...]
    level: float | None = None


@dataclass(frozen=True, kw_only=True)
class Spoke:
    """One axis of a radar chart.

    Attributes:
        name: Its label.
        tip: Its outer end.
        label: The position of the label.
        anchor: The label's `text-anchor` in SVG.
    """

    name: str
    tip: Point
    label: Point
    anchor: str


@dataclass(frozen=True, kw_only=True)
class Radar:
    """A radar chart with rings at quarters; the view box is `size` wide and high."""

    size: float
    spokes: tuple[Spoke, ...]
    rings: tuple[Series, ...]
    series: tuple[Series, ...]


def line_chart(curves: Mapping[str, Sequence[Point]]) -> Plane:
    """Return a chart of curves, with both axes from 0.

    Args:
        curves: Points (x, y) by name; at least one point overall, all finite.
    """
    x_max = max(x for points in curves.values() for x, _ in points)
    y_max = max(y for points in curves.values() for _, y in points)
    frame = Plane(x_ticks=(), y_ticks=(), series=())
    x_values, y_values = round_ticks(0, x_max), round_ticks(0, y_max)
    x_end, y_end = max(x_max, 1e-9), max(y_max, y_values[-1])

    def across(x: float) -> float:
        return frame.left + (frame.right - frame.left) * x / x_end

    def up(y: float) -> float:
        return frame.bottom - (frame.bottom - frame.top) * y / y_end

    return Plane(
        x_ticks=tuple(Tick(place=across(x), label=f"{x:g}") for x in x_values if x <= x_end),
        y_ticks=tuple(Tick(place=up(y), label=f"{y:g}") for y in y_values),
        series=tuple(
            Series(name=name, points=tuple((across(x), up(y)) for x, y in points)) for name, points in curves.items()
        ),
    )


def cost_chart(points: Mapping[str, Point], level: float | None) -> Plane:
    """Return a chart of scores over costs, with a logarithmic axis for the costs.

    Args:
        points: (cost, score) by name; at least one, costs above 0, all finite.
        level: A score of unknown cost, drawn as a line; or None.
    """
    costs = [cost for cost, _ in points.values()]
    low, high = math.log10(min(costs)), math.log10(max(costs))
    margin = max(0.15, 0.5 - (high - low) / 2)  # at least a decade in all, so that there are ticks
    low, high = low - margin, high + margin
    scores = [score for _, score in points.values()] + ([] if level is None else [level])
    y_values = round_ticks(min(0.0, *scores), max(*scores, 0.1))
    frame = Plane(x_ticks=(), y_ticks=(), series=())

    def across(cost: float) -> float:
        return frame.left + (frame.right - frame.left) * (math.log10(cost) - low) / (high - low)

    def up(score: float) -> float:
        share = (score - y_values[0]) / (y_values[-1] - y_values[0])
        return frame.bottom - (frame.bottom - frame.top) * share

    steps = (1, 2, 5) if high - low < 3 else (1,)
    exponents = range(math.floor(low), math.ceil(high) + 1)
    marks = [step * 10.0**exponent for exponent in exponents for step in steps]
    return Plane(
        x_ticks=tuple(Tick(place=across(mark), label=f"{mark:g}") for mark in marks if low <= math.log10(mark) <= high),
        y_ticks=tuple(Tick(place=up(value), label=f"{value:g}") for value in y_values),
        series=tuple(Series(name=name, points=((across(x), up(y)),)) for name, (x, y) in points.items()),
        level=None if level is None else up(level),
    )


def radar_chart(spokes: Sequence[str], series: Mapping[str, Sequence[float]]) -> Radar:
    """Return a chart of scores around a circle, clockwise from the top.

    Args:
        spokes: At least three names.
        series: One score per spoke, by name of the series; clipped to 0 and 1.
    """
    size, radius = 400.0, 170.0

    def at(place: int, share: float) -> Point:
        angle = 2 * math.pi * place / len(spokes)
        return size / 2 + radius * share * math.sin(angle), size / 2 - radius * share * math.cos(angle)

    def around(name: str, shares: Sequence[float]) -> Series:
        return Series(name=name, points=tuple(at(place, share) for place, share in enumerate(shares)))

    def anchor(x: float) -> str:
        if abs(x - size / 2) < 1:
            return "middle"
        return "start" if x > size / 2 else "end"

    return Radar(
        size=size,
        spokes=tuple(
            Spoke(name=name, tip=at(place, 1), label=at(place, 1.08), anchor=anchor(at(place, 1)[0]))
            for place, name in enumerate(spokes)
        ),
        rings=tuple(around(f"{share:g}", [share] * len(spokes)) for share in (0.25, 0.5, 0.75, 1)),
        series=tuple(around(name, [min(max(share, 0.0), 1.0) for share in shares]) for name, shares in series.items()),
    )


def round_ticks(low: float, high: float, about: int = 5) -> tuple[float, ...]:
    """Return round numbers in about so many steps, from at most `low` to at least `high`.

    Example:
        >>> round_ticks(0, 0.87)
        (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """
    span = high - low if high > low else 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil((low + span) / step - 1e-9)
    return tuple(round(number * step, 12) for number in range(first, last + 1))


def thinned(points: Sequence[Point], num_points: int) -> list[Point]:
    """Average neighbouring points until at most `num_points` are left; each has the x of the last one averaged."""
    size = max(1, math.ceil(len(points) / num_points))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], math.fsum(y for _, y in group) / len(group)) for group in groups]

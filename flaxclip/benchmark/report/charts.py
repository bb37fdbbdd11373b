"""Charts as SVG text that takes its colours from the page, so that they follow its dark mode."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 440, 280, 68, 44, 12, 16
_CHARACTER = 12
"""Units of the image that a digit or a percent sign is wide, at most."""
LINES = ("series-0", "series-1", "series-2", "series-3", "series-4", "series-5")
"""Classes of the page's style sheet."""


class Point(NamedTuple):
    """A place in units of the data, what it is called, and its 95% interval if it has one."""

    x: float
    y: float
    label: str
    interval: tuple[float, float] | None = None


class Axes(NamedTuple):
    """Ranges in units of the data."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_label: str
    y_label: str
    x_is_share: bool
    y_is_share: bool = True

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Of a point, in units of the image."""
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        across = (x - x0) / ((x1 - x0) or 1)
        up = (y - y0) / ((y1 - y0) or 1)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP),
        )


def chart(
    title: str,
    axes: Axes,
    series: Mapping[str, Sequence[Point]],
    line: Sequence[tuple[float, float]] = (),
    background: Sequence[Point] = (),
    connect: bool = False,
    marks: bool = True,
) -> Markup:
    """An image of points in several series, over a line and points in the background.

    `connect` draws a line through each series, `marks` its points.
    """
    parts = [_frame(axes)]
    for point in background:
        x, y = axes.place(point.x, point.y)
        parts.append(_dot(x, y, 3, "reference", point.label))
    if line:
        parts.append(_path([axes.place(*place) for place in line], "reference-line"))
    for style, points in zip(LINES * len(series), series.values(), strict=False):
        if connect:
            parts.append(_path([axes.place(p.x, p.y) for p in points], style))
        for point in points if marks else ():
            x, y = axes.place(point.x, point.y)
            if point.interval is not None:
                parts.append(_path([axes.place(point.x, end) for end in point.interval], style))
            parts.append(_dot(x, y, 5, style, point.label))
    described = escape(title)
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{described}">'
        + "".join(parts)
        + "</svg>"
    )


def _frame(axes: Axes) -> str:
    parts = []
    shares = [number / 4 for number in range(5)]
    (x0, x1), (y0, y1) = axes.x_range, axes.y_range
    name_x = _share if axes.x_is_share else _whole_number
    name_y = _share if axes.y_is_share else short_number
    names = _labels([x0 + share * (x1 - x0) for share in shares], name_x)
    heights = _labels([y0 + share * (y1 - y0) for share in shares], name_y)
    for share, name, height in zip(shares, names, heights, strict=True):
        at_x, at_y = axes.place(x0 + share * (x1 - x0), y0 + share * (y1 - y0))
        anchor = "middle"
        if at_x + _CHARACTER * len(name) / 2 > WIDTH:  # none is cut off at the edge
            at_x, anchor = WIDTH, "end"
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y:.1f}" y2="{at_y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{at_y + 4:.1f}" text-anchor="end">{height}</text>'
            f'<text x="{at_x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{anchor}">{name}</text>'
        )
    parts.append(
        f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">'
        f"{escape(axes.x_label)}</text>"
        f'<text transform="translate(12 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(axes.y_label)}</text>"
    )
    return "".join(parts)


def _labels(values: Sequence[float], name: Callable[[float, int], str]) -> list[str]:
    """Of an axis, with as many digits as it takes to tell them apart."""
    for digits in range(3, 7):
        labels = [name(value, digits) for value in values]
        if len(set(labels)) == len(labels):
            break
    return labels


def _share(value: float, digits: int) -> str:
    return f"{100 * value:.{digits}g}%"


def _whole_number(value: float, digits: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else short_number(value, digits)


def short_number(value: float, digits: int = 3) -> str:
    """Short enough for a margin, a thousand and more with commas."""
    if 1000 <= abs(value) < 1e6:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 0.01:
        return f"{value:.{digits}g}"
    return f"{value:.{digits - 2}e}"


def _dot(x: float, y: float, radius: float, style: str, label: str) -> str:
    return (
        f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
        f"<title>{escape(label)}</title></circle>"
    )


def _path(places: Sequence[tuple[float, float]], style: str) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="{style}" points="{points}"/>'

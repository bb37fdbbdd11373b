"""What a result says of parts of its examples: by language, kind, group and confidence."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from markupsafe import Markup

from flaxclip.benchmark.report.charts import Axes, Point, chart
from flaxclip.benchmark.results import Result

_COUNTS = ("examples", "items", "classes", "different_names")
"""What is a number of things and no share."""
_NO_COLUMN = ("most_similar",)


class Breakdown(NamedTuple):
    """A score, or several, of each part of a set."""

    title: str
    of: str
    """What a row is of."""
    columns: tuple[str, ...]
    rows: list[tuple[str, list[float | int | None]]]
    """Name and values of each part; None where it has none."""
    has_quoted: bool
    """The first column is the score that is quoted."""

    def is_count(self, column: int) -> bool:
        """Whether a column has numbers of things, not shares."""
        return self.columns[column].replace(" ", "_") in _COUNTS


def breakdowns(result: Result) -> list[Breakdown]:
    """The tables of a result, those of its quoted score first."""
    details, metric = result.details, result.metric
    found = [
        _of_parts("By language", "language", details.get("languages", {}).items(), metric),
        _of_parts("By kind", "kind", details.get("kinds", {}).items(), metric),
        _of_parts("By group", "group", _named(details.get("groups", [])), _of_groups(metric)),
    ]
    shares = {
        f"{title}: {_words(score)}": rows
        for title, key in (("White or not", "by_white_or_not"), ("By race", "by_race"))
        for score, rows in details.get(key, {}).items()
    }
    shares["Gender by race and gender"] = details.get("gender_by_race_and_gender", [])
    found += [_of_parts(title, "group", _named(rows), "share") for title, rows in shares.items()]
    return [table for table in found if table.rows]


def _of_groups(metric: str) -> str:
    """The score of one group that a score of the worst one is made of."""
    return metric.removeprefix("worst_group_")


def _named(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(row["group"], {n: v for n, v in row.items() if n != "group"}) for row in rows]


def _of_parts(
    title: str, of: str, parts: Iterable[tuple[str, Mapping[str, Any]]], metric: str
) -> Breakdown:
    values = dict(parts)
    names = dict.fromkeys(name for part in values.values() for name in part)
    quoted = [name for name in (metric, metric.split("_of_")[0]) if name in names][:1]
    columns = quoted + [name for name in names if name not in (*quoted, *_NO_COLUMN)]
    rows = [(part, [of_part.get(name) for name in columns]) for part, of_part in values.items()]
    return Breakdown(title, of, tuple(map(_words, columns)), rows, bool(quoted))


def _words(name: str) -> str:
    return name.replace("_", " ")


def reliability_chart(result: Result) -> Markup | None:
    """Accuracy against confidence, bin by bin; None if the result does not say it."""
    bins = [b for b in result.details.get("reliability_diagram", []) if b["examples"]]
    if not bins:
        return None
    points = [
        Point(
            b["confidence"],
            b["accuracy"],
            f"{b['examples']:,} with a confidence of {b['above']:.0%} to {b['up_to']:.0%}: "
            f"{b['accuracy']:.1%} right, {b['confidence']:.1%} expected",
        )
        for b in bins
    ]
    axes = Axes((0, 1), (0, 1), "confidence", "accuracy", True)
    title = f"Accuracy against confidence on {result.task}"
    return chart(title, axes, {"accuracy": points}, ((0, 0), (1, 1)), connect=True)

"""The datasheet of a prepared corpus, as JSON and as a self-contained page.

Its contents do not depend on the time, the place or the number of processes.
"""

import base64
import collections
import dataclasses
import importlib.metadata
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import PIL.Image
from etils import epath

from flaxclip.data.images.open_image import decode_image
from flaxclip.data.inspect.statistics import MEASURES, Distribution, PairStatistics
from flaxclip.data.prepare.filters import REASONS
from flaxclip.data.prepare.scan import Dropped, Recipe
from flaxclip.data.prepare.write_shards import ShardReport
from flaxclip.data.sources.array_records.array_record import ArrayRecordSource

SAMPLES = 24
_NAMED = 100
"""Unreadable examples that the datasheet names; `dropped.jsonl` has all."""
_THUMBNAIL = 256
_BARS = 24
_PAGE = pathlib.Path(__file__).parent / "datasheet_page"
_CHARTS = ("shorter_side", "aspect", "image_bytes", "caption_words")


@dataclasses.dataclass
class DroppedSummary:
    """Counts of all that was dropped, and the names of the first unreadable examples."""

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    unreadable: list[Dropped] = dataclasses.field(default_factory=list)

    def add(self, dropped: Dropped) -> None:
        self.counts[dropped.reason] += 1
        if dropped.reason == "unreadable" and len(self.unreadable) < _NAMED:
            self.unreadable.append(dropped)


def make_datasheet(
    plan: Mapping[str, Any],
    splits: Mapping[str, Sequence[tuple[str, ShardReport]]],
    dropped: DroppedSummary,
    files: Sequence[str],
) -> dict[str, Any]:
    """The datasheet as JSON.

    Args:
        plan: the preparation's plan, with the number of examples of the corpus.
        splits: names and contents of each split's shards.
        dropped: all examples that were left out.
        files: names of the other files beside shards and datasheet.
    """
    sheets: dict[str, dict[str, Any]] = {}
    for split, shards in splits.items():
        statistics = PairStatistics()
        for _, report in shards:
            statistics += PairStatistics.from_json(report.statistics)
        sheets[split] = {
            "pairs": statistics.pairs,
            "bytes": sum(report.bytes for _, report in shards),
            "statistics": statistics.to_json(),
            "shards": [
                {
                    "file": name,
                    "pairs": report.pairs,
                    "bytes": report.bytes,
                    "sha256": report.sha256,
                }
                for name, report in shards
            ],
        }
        if plan["recipe"]["reinforcing"] is not None:
            truncated = [report.teacher_truncated_captions for _, report in shards]
            sheets[split]["teacher_truncated_captions"] = _sum_if_known(truncated)
    kept = sum(sheet["pairs"] for sheet in sheets.values())
    return {
        "plan": plan,
        "records": {"read": plan["records"], "kept": kept, "dropped": dropped.counts.total()},
        "dropped": {
            reason: {"records": dropped.counts[reason], "meaning": meaning}
            for reason, meaning in REASONS.items()
            if dropped.counts[reason]
        },
        "unreadable": [{"record": d.record, "found": d.detail} for d in dropped.unreadable],
        "splits": sheets,
        "files": list(files),
        "made_with": {
            name: importlib.metadata.version(name)
            for name in ("flaxclip", "pillow", "array_record")
        },
    }


def truncated_captions(sheet: Mapping[str, Any]) -> int | None:
    """Captions that lost their end to a teacher's context length, summed over teachers. None
    without teachers, or if a version that did not count them has written a part of the shards.
    """
    return _sum_if_known(
        [split.get("teacher_truncated_captions") for split in sheet["splits"].values()]
    )


def _sum_if_known(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def as_json(sheet: Mapping[str, Any]) -> bytes:
    """Indented JSON, but a histogram's bins in one line each."""
    text = json.dumps(sheet, indent=2, ensure_ascii=False)
    text = re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text) + "\n"
    return text.encode("utf-8", "backslashreplace")  # names of files need not be UTF-8


def render_page(sheet: Mapping[str, Any], samples: Iterable[Mapping[str, Any]]) -> str:
    """The datasheet as HTML, with its images inside."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["rounded"] = lambda value: (
        f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
    )
    environment.filters["percent"] = lambda share: (
        f"{share:.2%}" if share < 0.01 else f"{share:.1%}"
    )
    statistics = PairStatistics()
    for split in sheet["splits"].values():
        statistics += PairStatistics.from_json(split["statistics"])
    return environment.get_template("page.html").render(
        style=(_PAGE / "page.css").read_text(),
        sheet=sheet,
        formats=statistics.formats.most_common(),
        pairs=statistics.pairs,
        truncated=truncated_captions(sheet),
        charts=[
            {"title": MEASURES[measure], "bars": _bars(statistics.distributions[measure])}
            for measure in _CHARTS
        ],
        rows=[(title, statistics.distributions[measure]) for measure, title in MEASURES.items()],
        samples=list(samples),
        recipe=json.dumps(sheet["plan"], indent=2, ensure_ascii=False),
    )


def draw_samples(shards: Iterable[epath.Path], recipe: Recipe) -> list[dict[str, Any]]:
    """The shards' first pairs, with small images: a fair sample, since hashes order the shards."""
    samples: list[dict[str, Any]] = []
    for shard in shards:
        source = ArrayRecordSource(os.fspath(shard), recipe.corpus.captions)
        for number in range(min(SAMPLES - len(samples), len(source))):
            pair = source[number]
            assert isinstance(pair.image, bytes), "shards hold images as files"
            image = decode_image(pair.image)
            size = "{} × {}".format(*image.size)
            captions = pair.captions[:3]
            samples.append({"image": thumbnail(image), "size": size, "captions": captions})
        if len(samples) == SAMPLES:
            break
    return samples


def thumbnail(image: PIL.Image.Image) -> str:
    """A small JPEG as a data URL."""
    image = image.convert("RGB")
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _bars(distribution: Distribution) -> list[dict[str, Any]]:
    """Bars of equal width, up to the 99th percentile; the last one has all values above."""
    assert distribution.smallest is not None, "there are no bars of nothing"
    low, high = distribution.smallest, distribution.quantile(0.99)
    width = max(-(-(high - low + 1) // _BARS), 1)
    bars = max(-(-(high - low + 1) // width), 1)
    counts: collections.Counter[int] = collections.Counter()
    for edge, count in distribution.bins.items():
        counts[min(max(edge - low, 0) // width, bars - 1)] += count
    most = max(counts.values())
    return [
        {
            "low": low + bar * width,
            "high": distribution.largest if bar == bars - 1 else low + (bar + 1) * width - 1,
            "count": counts[bar],
            "height": counts[bar] / most,
        }
        for bar in range(bars)
    ]

"""Filters for the pairs of a corpus, by size, aspect, caption length and stored scores."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flaxclip.data.inspect.statistics import PairFacts
from flaxclip.errors import InputError

REASONS: Mapping[str, str] = {
    "unreadable": "broken, or without an image or a caption",
    "small_image": "shorter side below --min-side",
    "large_image": "longer side above --max-side",
    "long_image": "longer side more than --max-aspect times the shorter",
    "short_caption": "a caption below --min-words or --min-characters",
    "long_caption": "a caption above --max-words or --max-characters",
    "no_score": "no number under --score-key",
    "low_score": "score below --min-score",
    "high_score": "score above --max-score",
    "duplicate": "the same as an earlier example",
}
"""Reasons for dropping an example, in the order of the checks: the first that applies counts."""


@dataclasses.dataclass(frozen=True)
class PairFilters:
    """Inclusive limits. An example is kept if its image and all its captions are within them."""

    min_side: int = 1
    """Minimum of the shorter side, in pixels."""
    max_side: int | None = None
    """Maximum of the longer side, in pixels."""
    max_aspect: float | None = None
    """Maximum of longer side over shorter side."""
    min_words: int = 1
    """Minimum words of every caption: parts between white space."""
    max_words: int | None = None
    min_characters: int = 1
    """Minimum characters of every caption."""
    max_characters: int | None = None
    score_key: str | None = None
    """Field of the JSON, or column of the table, that holds a number, e.g. `similarity`."""
    min_score: float | None = None
    max_score: float | None = None

    def __post_init__(self) -> None:
        bounded = self.min_score is not None or self.max_score is not None
        if bounded and self.score_key is None:
            raise InputError(
                "a score is bounded, but not which\n"
                "name the field that holds it, for example --score-key similarity"
            )
        if self.score_key is not None and not bounded:
            raise InputError("--score-key without --min-score or --max-score\ngive a bound")
        for name in ("side", "words", "characters", "score"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if None not in (low, high) and low > high:
                raise InputError(
                    f"--min-{name} {low} is above --max-{name} {high}: nothing is kept"
                )
        if self.max_aspect is not None and self.max_aspect < 1:
            raise InputError(
                f"--max-aspect is {self.max_aspect}\nit is longer side over shorter: at least 1"
            )

    def why_dropped(self, facts: PairFacts, fields: Mapping[str, Any]) -> tuple[str, str] | None:
        """One of `REASONS` with the value found, or None for an example that is kept.

        Args:
            facts: of the pair.
            fields: `Source.fields`; looked at only if there is a `score_key`.
        """
        shorter, longer = sorted((facts.width, facts.height))
        size = f"{facts.width} × {facts.height} px"
        if shorter < self.min_side:
            return "small_image", size
        if self.max_side is not None and longer > self.max_side:
            return "large_image", size
        if self.max_aspect is not None and longer > self.max_aspect * shorter:
            return "long_image", size
        for characters, words in facts.captions:
            length = f"{words} words, {characters} characters"
            if words < self.min_words or characters < self.min_characters:
                return "short_caption", length
            if _above(words, self.max_words) or _above(characters, self.max_characters):
                return "long_caption", length
        return None if self.score_key is None else self._why_score(fields, self.score_key)

    def _why_score(self, fields: Mapping[str, Any], score_key: str) -> tuple[str, str] | None:
        score = fields.get(score_key)
        # NaN is a number to JSON, but neither above nor below anything.
        if isinstance(score, bool) or not isinstance(score, int | float) or score != score:
            return "no_score", f"{self.score_key}: {score!r:.40}"
        if self.min_score is not None and score < self.min_score:
            return "low_score", f"{self.score_key}: {score}"
        if _above(score, self.max_score):
            return "high_score", f"{self.score_key}: {score}"
        return None


def _above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit

"""Names of classes put into sentences: the words of a zero-shot classifier."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from flaxclip.errors import InputError

Name = str | Sequence[str]
"""A class's name, or several that mean the same. `animal > dog` is a dog, a kind of animal."""

Names = Sequence[Name]
"""One for each class."""

Templates = Sequence[str] | Mapping[str, Sequence[str]]
"""For all classes, with `{}` for the class's name and `{parent}` for what it is a kind of; or for
each class its own whole prompts. A single template, or prompt, may stand alone."""

DEFAULT_TEMPLATES = ("a photo of a {}.",)
"""Radford et al. 2021, section 3.1.4."""


def path_of(name: str) -> tuple[str, ...]:
    """`animal > dog` -> ("animal", "dog"); a name without a parent stays as it is."""
    parts = name.split(" > ")
    return tuple(part.strip() for part in parts) if len(parts) > 1 else (name,)


def first_name(name: Name) -> str:
    """Of several names, the first."""
    return name if isinstance(name, str) else name[0]


def class_prompts(class_names: Names, templates: Templates) -> list[tuple[str, ...]]:
    """For each class its prompts; those of all its names, where it has several.

    Raises:
        InputError: a template has no `{}`, a class has no prompts or no parent to put into
            them, or there are no names or no templates.
    """
    if isinstance(templates, str):
        templates = (templates,)
    if isinstance(class_names, str):
        raise InputError(
            f"got one string, {class_names[:40]!r}, where names of classes are expected\n"
            "put them into a list"
        )
    if not class_names or not templates:
        raise InputError("no class names or no templates\nthere must be at least one of each")
    for index, name in enumerate(class_names):
        _check_named(index, name)
    if isinstance(templates, Mapping):
        if without := [name for name in map(first_name, class_names) if name not in templates]:
            raise InputError(
                f"{len(without)} classes have no prompts of their own, e.g. {without[0]!r}\n"
                "a dict of prompts must have every class by its name"
            )
        own = [templates[first_name(name)] for name in class_names]
        # A text is a sequence, too: of its letters.
        prompts = [(texts,) if isinstance(texts, str) else tuple(texts) for texts in own]
        if not all(prompts):
            empty = first_name(class_names[prompts.index(())])
            raise InputError(
                f"class {empty!r} has an empty list of prompts\n"
                "there must be at least one for each class"
            )
        for name, texts in zip(class_names, prompts, strict=True):
            if not all(map(str.strip, texts)):
                raise InputError(
                    f"class {first_name(name)!r} has an empty prompt\nevery prompt must be a text"
                )
        return prompts
    for template in templates:
        _check_template(template)
    return [
        tuple(
            _fill(template, path)
            for path in map(path_of, (name,) if isinstance(name, str) else name)
            for template in templates
        )
        for name in class_names
    ]


def _check_named(index: int, name: Name) -> None:
    synonyms = (name,) if isinstance(name, str) else tuple(name)
    parts = [part.strip() for synonym in synonyms for part in synonym.split(" > ")]
    if not any(parts):
        raise InputError(f"class {index} has no name\nevery class must have one")
    if not all(parts):
        raise InputError(
            f"class {index} has an empty name: {name!r}\n"
            "every one of its names must be a text, and so must each part of 'parent > name'"
        )


def _check_template(template: str) -> None:
    if "{}" not in _PLACES.findall(template):
        raise InputError(f"template {template!r} has no {{}}\nit is where the class's name goes")
    if re.search(r"[{}]", _PLACES.sub("", template)):
        raise InputError(
            f"template {template!r} has braces other than {{}} and {{parent}}\n"
            "write {{ and }} for braces of the text itself"
        )


_PLACES = re.compile(r"\{\{|\}\}|\{parent\}|\{\}")
"""What braces mean in a template: those of the text, doubled as `str.format` has them, and where
names go."""


def _fill(template: str, path: Sequence[str]) -> str:
    """In one pass: braces within a name are part of the name."""
    words = {"{{": "{", "}}": "}", "{}": path[-1]}
    if len(path) > 1:
        words["{parent}"] = path[-2]
    elif "{parent}" in _PLACES.findall(template):
        raise InputError(
            f"template {template!r} asks for a parent, but {path[0]!r} has none\n"
            "write names as 'parent > name'"
        )
    return _PLACES.sub(lambda place: words[place[0]], template)


def check_distinct(names: Names) -> None:
    """Raise `InputError` where two classes share a name."""
    counts = Counter((name,) if isinstance(name, str) else tuple(name) for name in names)
    if repeated := [", ".join(name) for name, count in counts.items() if count > 1]:
        raise InputError(
            f"two classes are named {repeated[0]!r}\nthey cannot be told apart by name"
        )

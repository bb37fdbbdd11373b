r"""Several thousand real image–caption pairs from two Debian packages, as webdataset shards.

    apt-get download tuxpaint-stamps-default openclipart-png openclipart-svg
    for package in *.deb; do dpkg-deb -x "$package" unpacked; done
    python experiments/corpora/make_clipart_shards.py \
        --stamps unpacked/usr/share/tuxpaint/stamps \
        --clip-art-png unpacked/usr/share/openclipart/png \
        --clip-art-svg unpacked/usr/share/openclipart/svg --out clipart

writes `clipart/train-{00000..}.tar` and `clipart/heldout-00000.tar` in the layout of img2dataset.

Tux Paint's stamps are photo cut-outs and drawings, each with an English sentence. Open Clip Art's
images have a title and keywords in their SVG twins, noisy as the web's: a title that several
images share names a collection, not an image, so the file's name stands in for it. A pair is
held out by the hash of its image, and only if no other image looks the same and no other
caption reads the same: held-out retrieval cannot be solved by memory. The packages' own
`copyright` files state the images' licences.
"""

import collections
import dataclasses
import hashlib
import io
import json
import pathlib
import re
import tarfile
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
import tyro

from flaxclip.errors import InputError, exit_on_input_error

MIN_SIDE = 32
MAX_PER_CAPTION = 4  # "star" has 1,375 images; more of the same only skews the data
SAME_TITLE = 3  # images; a title of more is a collection's
LOOKS_THE_SAME = 8.0  # mean absolute difference of 8 x 8 RGB thumbnails, of 255
PAIRS_PER_SHARD = 1000

# Keywords that describe the collection, its history or its tools, not the image.
VAGUE = """
    theme icons special unsorted magick work lemon_theme_icon mapsym map_symbol mimetypes mime-types
    mimeicon appicon signs_and_symbols united_nations_member clip_art clipart geometry national
    contour filesystem shapes all other misc image svg inkscape
"""


@dataclasses.dataclass(frozen=True)
class Image:
    """A pair before it is split: its contents, and the features that distinguish it."""

    source: str
    caption: str
    jpeg: bytes
    size: tuple[int, int]
    digest: str
    """SHA-256 of the pixels: equal images in differing files are equal."""
    thumbnail: np.ndarray
    """[192] float32: 8 x 8 RGB."""

    @property
    def caption_key(self) -> str:
        return " ".join(re.findall(r"[^\W\d_]+", self.caption.lower()))


def main(
    stamps: pathlib.Path,
    clip_art_png: pathlib.Path,
    clip_art_svg: pathlib.Path,
    out: pathlib.Path,
    side: int = 256,
    heldout_share: float = 0.1,
) -> None:
    """Write the shards.

    Args:
        stamps: unpacked usr/share/tuxpaint/stamps of tuxpaint-stamps-default.
        clip_art_png: unpacked usr/share/openclipart/png of openclipart-png.
        clip_art_svg: unpacked usr/share/openclipart/svg of openclipart-svg.
        out: folder for the shards; must not hold any.
        side: longest side of the images, in pixels.
        heldout_share: share of the images that may be held out.
    """
    for folder, suffix in ((stamps, "txt"), (clip_art_png, "png"), (clip_art_svg, "svg")):
        if not any(folder.rglob(f"*.{suffix}")):
            raise InputError(f"no .{suffix} below {folder}\nunpack the packages as --help shows")
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob("*.tar")):
        raise InputError(f"{out} holds tar files already\nname an empty folder")

    warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
    dropped = collections.Counter()
    captioned = [
        *_stamps(stamps, dropped),
        *_clip_art(clip_art_png, clip_art_svg, dropped),
    ]
    found = len(captioned) + dropped.total()
    loaded = [_load(*item, side, dropped) for item in captioned]
    images = _drop_repetitions([image for image in loaded if image], dropped)
    heldout = _heldout(images, heldout_share)
    train = [image for image in images if image.digest not in heldout]
    held = [image for image in images if image.digest in heldout]
    print(f"{found:,} images found")
    for reason, count in dropped.most_common():
        print(f"  {count:6,} dropped: {reason}")
    for name, split in (("train", train), ("heldout", held)):
        _write(out, name, split)


def _stamps(root: pathlib.Path, dropped: collections.Counter) -> Iterator[tuple]:
    """Each stamp's image, where it lies, and the first line of its text."""
    for text in sorted(root.rglob("*.txt")):
        image = text.with_suffix(".png")
        if not image.exists():
            dropped["stamps: drawn in SVG only"] += 1
            continue
        sentence = text.read_text("utf-8").split("\n", 1)[0].strip()
        if not sentence:
            dropped["stamps: no English sentence"] += 1
            continue
        yield image, f"stamps/{image.relative_to(root)}", sentence


def _clip_art(
    png: pathlib.Path, svg: pathlib.Path, dropped: collections.Counter
) -> Iterator[tuple]:
    images = sorted(png.rglob("*.png"))
    described = {}
    for image in images:
        twin = svg / image.relative_to(png).with_suffix(".svg")
        described[image] = _describe(twin) if twin.exists() else ("", "", [])
    titles = collections.Counter(title for title, _, _ in described.values())
    descriptions = collections.Counter(description for _, description, _ in described.values())
    for image, (title, description, keywords) in described.items():
        if titles[title] > SAME_TITLE or title.startswith(("Clipart by", "Part of")):
            title = _words(image.stem) or _words(title)
        if descriptions[description] > SAME_TITLE or not _is_prose(description):
            description = ""
        caption = _clip_art_caption(_words(title), description, keywords)
        if not caption:
            dropped["openclipart: no words"] += 1
            continue
        yield image, f"openclipart/{image.relative_to(png)}", caption


def _describe(svg: pathlib.Path) -> tuple[str, str, list[str]]:
    """Title, description and keywords from the RDF in an SVG file."""
    work = next((e for e in ET.parse(svg).iter() if e.tag.endswith("}Work")), ET.Element("none"))
    fields = {child.tag.rpartition("}")[2]: child for child in work}

    def text(element: ET.Element | None) -> str:
        return " ".join((element.text or "").split()) if element is not None else ""

    keywords = [text(e) for e in fields.get("subject", ()) for e in e.iter() if e.tag[-3:] == "}li"]
    return text(fields.get("title")), text(fields.get("description")), keywords


def _words(name: str) -> str:
    """`aiga_customs_02` -> `aiga customs`: words of two letters or more; no numbers."""
    return " ".join(re.findall(r"[^\W\d_]['’\w]*[^\W\d_]", re.sub(r"[_\d]+", " ", name)))


def _is_prose(text: str) -> bool:
    return 3 <= len(text.split()) <= 25 and not re.search(r"@|https?:|HASH|Collection", text)


def _clip_art_caption(title: str, description: str, keywords: Sequence[str]) -> str:
    known = f"{title} {description}".lower()
    helpful = []
    for keyword in keywords:
        words = _words(keyword).lower()
        if (
            not words
            or keyword.lower() in VAGUE.split()
            or keyword.lower().startswith(("hash", "0x"))
        ):
            continue
        if words not in known and words not in helpful:
            helpful.append(words)
    if title.lower() in _words(description).lower():
        title = ""
    parts = [title, description.rstrip(". "), ", ".join(helpful[:4])]
    return ". ".join(part for part in parts if part)


def _load(
    path: pathlib.Path, source: str, caption: str, side: int, dropped: collections.Counter
) -> Image | None:
    """The opaque part of an image on white, its longest side at most `side`, as JPEG."""
    kind = source.partition("/")[0]
    try:
        image = PIL.Image.open(path).convert("RGBA")
    except OSError:
        dropped[f"{kind}: broken image"] += 1
        return None
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        dropped[f"{kind}: more than {PIL.Image.MAX_IMAGE_PIXELS:,} pixels"] += 1
        return None
    image = image.crop(image.getbbox())  # without transparent margins, often most of the canvas
    if min(image.size) < MIN_SIDE:
        dropped[f"{kind}: a side below {MIN_SIDE} px"] += 1
        return None
    white = PIL.Image.new("RGBA", image.size, "white")
    image = PIL.Image.alpha_composite(white, image).convert("RGB")
    image.thumbnail((side, side), PIL.Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    if pixels.std() < 2:
        dropped[f"{kind}: blank on white"] += 1
        return None
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    digest = hashlib.sha256(repr(image.size).encode() + pixels.tobytes()).hexdigest()
    thumbnail = np.asarray(image.resize((8, 8), PIL.Image.Resampling.BOX), np.float32).ravel()
    return Image(source, caption, file.getvalue(), image.size, digest, thumbnail)


def _drop_repetitions(images: Sequence[Image], dropped: collections.Counter) -> list[Image]:
    """In the order of their digests, which mixes the sources."""
    kept, digests, captions = [], set(), collections.Counter()
    for image in sorted(images, key=lambda image: (image.digest, image.source)):
        kind = image.source.partition("/")[0]
        if image.digest in digests:
            dropped[f"{kind}: the same image twice"] += 1
        elif captions[image.caption_key] == MAX_PER_CAPTION:
            dropped[f"{kind}: more than {MAX_PER_CAPTION} images of one caption"] += 1
        else:
            digests.add(image.digest)
            captions[image.caption_key] += 1
            kept.append(image)
    return kept


def _heldout(images: Sequence[Image], share: float) -> set[str]:
    """Digests of the images to hold out."""
    captions = collections.Counter(image.caption_key for image in images)
    thumbnails = np.stack([image.thumbnail for image in images])
    heldout = set()
    for number, image in enumerate(images):
        if int(image.digest[:8], 16) >= share * 2**32 or captions[image.caption_key] > 1:
            continue
        differences = np.abs(thumbnails - thumbnails[number]).mean(axis=1)
        differences[number] = np.inf
        if differences.min() >= LOOKS_THE_SAME:
            heldout.add(image.digest)
    return heldout


def _write(out: pathlib.Path, name: str, images: Sequence[Image]) -> None:
    total = 0
    for shard, start in enumerate(range(0, len(images), PAIRS_PER_SHARD)):
        path = out / f"{name}-{shard:05d}.tar"
        with tarfile.open(path, "w") as tar:
            for number, image in enumerate(images[start : start + PAIRS_PER_SHARD]):
                key = f"{shard:05d}{number:04d}"
                width, height = image.size
                fields = {
                    "key": key,
                    "caption": image.caption,
                    "source": image.source,
                    "width": width,
                    "height": height,
                }
                for suffix, data in (
                    ("jpg", image.jpeg),
                    ("txt", image.caption.encode()),
                    ("json", json.dumps(fields).encode()),
                ):
                    info = tarfile.TarInfo(f"{key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        total += path.stat().st_size
    kinds = collections.Counter(image.source.partition("/")[0] for image in images)
    words = [len(image.caption.split()) for image in images]
    distinct = len({image.caption_key for image in images})
    print(
        f"{name}: {len(images):,} pairs ({kinds['stamps']:,} stamps, {kinds['openclipart']:,} "
        f"clip art) in {shard + 1} shards, {total / 1e6:.1f} MB; captions of "
        f"{np.median(words):.0f} words (median), {distinct:,} distinct"
    )


if __name__ == "__main__":
    with exit_on_input_error("make_clipart_shards"):
        tyro.cli(main, description=__doc__)

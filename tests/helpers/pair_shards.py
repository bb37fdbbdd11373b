"""Tars whose examples are known: whole ones, and one or more for every reason to be dropped."""

import io
import json
import pathlib
import tarfile

import numpy as np
import PIL.Image

WHOLE = 60


def image(seed: int, width: int = 40, height: int = 30, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_shards(folder: pathlib.Path) -> dict[str, int]:
    """Two tars in `folder`; how many of their examples filters of side 20, aspect 3, two words and
    score 0.5 ought to drop, by reason.
    """
    examples = [(image(n), f"whole example {n}", 0.9) for n in range(WHOLE)]
    odd = [
        (b"", "a caption without an image's bytes", 0.9),
        (b"not an image", "a caption", 0.9),
        (image(100)[:700], "cut in the middle", 0.9),
        (image(101), b"\xff not UTF-8", 0.9),
        (image(102), "  ", 0.9),
        (image(103, 19, 40), "too small", 0.9),
        (image(104, 100, 30), "too long", 0.9),
        (image(105), "short", 0.9),
        (image(106), "bad score", 0.49),
        (image(107), "no score", "0.9"),
        (image(108), "no score either", None),
        (image(0), "whole example 0", 0.9),
        (image(1), "whole example 1", 0.7),
    ]
    examples[20:20] = odd
    folder.mkdir(parents=True, exist_ok=True)
    middle = len(examples) // 2
    for shard, part in enumerate((examples[:middle], examples[middle:])):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as tar:
            for number, (jpeg, caption, score) in enumerate(part):
                fields = {} if score is None else {"similarity": score}
                caption = caption if isinstance(caption, bytes) else caption.encode()
                members = {"jpg": jpeg, "txt": caption, "json": json.dumps(fields).encode()}
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{shard}{number:04}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return {
        "unreadable": 5,
        "small_image": 1,
        "long_image": 1,
        "short_caption": 1,
        "no_score": 2,
        "low_score": 1,
        "duplicate": 2,
    }

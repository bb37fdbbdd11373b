"""Images of one colour, and tars of them as img2dataset and CLIP_benchmark write them."""

import io
import tarfile

import PIL.Image


def jpeg(shade, side=48):
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (side, side), (shade, 255 - shade, 128)).save(buffer, "JPEG")
    return buffer.getvalue()


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path, pairs):
    """A tar as img2dataset writes it."""
    with tarfile.open(path, "w") as tar:
        for key, (image, caption) in pairs.items():
            for suffix, data in ((".jpg", image), (".txt", caption.encode())):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def add_members(tar, key, **members):
    """Members of an example by extension, in which _ stands for a dot."""
    for extension, data in members.items():
        info = tarfile.TarInfo(f"{key}.{extension.replace('_', '.')}")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def write_wds(root, records, shards=2, names=("cat", "dog", "owl"), split="test"):
    """`records`: dicts of extension -> bytes."""
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for index in range(shard, len(records), shards):
                for extension, data in records[index].items():
                    info = tarfile.TarInfo(f"s{index:07}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (folder / "nshards.txt").write_text(f"{shards}\n")
    (root / "classnames.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")
    return root


def labelled(count=7, classes=3):
    return [{"png": png(i * 10), "cls": b"%d" % (i % classes)} for i in range(count)]

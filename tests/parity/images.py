"""Real photographs, and files of every kind, for comparisons."""

import importlib.util
import io
import pathlib

import numpy as np
import PIL.Image


def photographs() -> list[pathlib.Path]:
    """Images in the wheels of three packages, found without importing these."""
    paths = []
    folders = {
        "skimage": "data",
        "sklearn": "datasets/images",
        "matplotlib": "mpl-data/sample_data",
    }
    for package, folder in folders.items():
        spec = importlib.util.find_spec(package)
        for root in spec.submodule_search_locations if spec else ():
            for suffix in ("png", "jpg", "gif"):
                paths += pathlib.Path(root, folder).glob(f"*.{suffix}")
    return sorted(paths)


def photographs_and_pieces(count: int) -> list[tuple[str, PIL.Image.Image]]:
    """All photographs; if these are fewer than `count`, also pieces of them, of every shape and
    with the colours and transparency of the whole, until there are as many.
    """
    whole = [(path.name, PIL.Image.open(path)) for path in photographs()]
    rng, pieces = np.random.default_rng(4), []
    for number in range(count - len(whole)):
        name, image = whole[number % len(whole)]
        width, height = (max(1, int(side * rng.uniform(0.1, 1))) for side in image.size)
        left, top = rng.integers(image.width - width + 1), rng.integers(image.height - height + 1)
        box = int(left), int(top), int(left) + width, int(top) + height
        pieces.append((f"{name}, piece {box}", image.crop(box)))
    return whole + pieces


def saved(image: PIL.Image.Image, kind: str, **options) -> bytes:
    """`image` as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def kinds_of_file() -> dict[str, bytes]:
    """Files in every colour mode and format that Pillow reads, by what they are."""
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (75, 101, 4), dtype=np.uint8)
    noise[:20, :30, 3] = 0
    rgba = PIL.Image.fromarray(noise).resize((203, 151), PIL.Image.Resampling.BICUBIC)
    rgb = rgba.convert("RGB")
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # orientation: turned by a quarter
    return {
        "RGBA": saved(rgba, "PNG"),
        "RGBA WebP": saved(rgba, "WEBP", lossless=True, exact=True),
        "LA": saved(rgba.convert("LA"), "PNG"),
        "palette": saved(rgb.quantize(64), "PNG"),
        "palette, one transparent": saved(rgb.quantize(64), "PNG", transparency=3),
        "palette, alphas": saved(rgb.quantize(64), "PNG", transparency=bytes(range(64))),
        "grey, one transparent": saved(rgb.convert("L"), "PNG", transparency=7),
        "1 bit": saved(rgb.convert("1"), "PNG"),
        "CMYK": saved(rgb.convert("CMYK"), "JPEG"),
        "CMYK TIFF": saved(rgb.convert("CMYK"), "TIFF"),
        "YCbCr TIFF": saved(rgb.convert("YCbCr"), "TIFF"),
        "EXIF": saved(rgb, "JPEG", exif=exif),
        "animated GIF": saved(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)] * 2),
        "animated WebP": saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)] * 2),
        "BMP": saved(rgb, "BMP"),
        "PPM": saved(rgb, "PPM"),
    }

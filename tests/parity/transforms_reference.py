"""Write tests/golden/transforms.npz: tiny images and what open_clip, transformers and torchvision
make of them.

    pip install open_clip_torch torchvision transformers
    python tests/parity/transforms_reference.py

Needs nothing of flaxclip, so that the expected pixels cannot come from the code under test.
"""

import io
import pathlib

import numpy as np
import open_clip.transform
import PIL.Image
import torchvision.transforms.functional
import transformers

SIZE = 16
CROPS = {"wide": (1, 3, 20, 29), "tall": (0, 2, 45, 17)}  # top, left, height, width


def main():
    rng = np.random.default_rng(0)
    wide = PIL.Image.fromarray(_blobs(rng, 23, 37, 3))
    images = {
        "wide": wide,
        "tall": PIL.Image.fromarray(_blobs(rng, 47, 21, 3)),
        "small": PIL.Image.fromarray(_blobs(rng, 7, 11, 3)),
        "transparent": PIL.Image.fromarray(_blobs(rng, 25, 18, 4)),
        "grey": wide.convert("L"),
        "palette": wide.quantize(32),
        "grey alpha": PIL.Image.fromarray(_blobs(rng, 25, 18, 4)).convert("LA"),
        "palette, one clear": wide.quantize(32),
        "palette, alphas": wide.quantize(32),
        "grey, one clear": wide.convert("L"),
        "1 bit": wide.convert("1"),
        "CMYK": wide.convert("CMYK"),
    }
    transparency = {
        "palette, one clear": 5,
        "palette, alphas": bytes(range(0, 256, 8)),
        "grey, one clear": images["grey"].getpixel((9, 9)),
    }
    arrays = {}
    for name, image in images.items():
        file = io.BytesIO()
        options = {"transparency": transparency[name]} if name in transparency else {}
        image.save(file, "TIFF" if image.mode == "CMYK" else "PNG", **options)
        arrays[f"{name}/file"] = np.frombuffer(file.getvalue(), np.uint8)
        for mode in ("shortest", "squash"):
            steps = open_clip.transform.image_transform(SIZE, is_train=False, resize_mode=mode)
            image = PIL.Image.open(file)
            for step in steps.transforms[:-2]:  # without MaybeToTensor and Normalize
                image = step(image)
            arrays[f"{name}/{mode}"] = np.asarray(image)
            arrays[f"{name}/{mode} of transformers"] = _by_transformers(file, mode)
    resized_crop = torchvision.transforms.functional.resized_crop
    bicubic = torchvision.transforms.InterpolationMode.BICUBIC
    for name, box in CROPS.items():
        crop = resized_crop(images[name], *box, [SIZE, SIZE], bicubic)
        arrays[f"{name}/crop_box"] = np.asarray(box)
        arrays[f"{name}/crop"] = np.asarray(crop)
    path = pathlib.Path(__file__).parents[1] / "golden" / "transforms.npz"
    np.savez_compressed(path, **arrays)
    print(path, path.stat().st_size, "bytes")


def _by_transformers(file, mode):
    """By the Pillow back end; the one that resizes tensors is close to it, even on noise."""
    square = {"height": SIZE, "width": SIZE}
    if mode == "shortest":
        name, sizes = "CLIPImageProcessor", {"size": {"shortest_edge": SIZE}, "crop_size": square}
    else:
        name, sizes = "SiglipImageProcessor", {"size": square}
    pixels = []
    for back_end in ("Pil", ""):
        processor = getattr(transformers, name + back_end)(
            do_rescale=False, do_normalize=False, **sizes
        )
        batch = processor(PIL.Image.open(file), return_tensors="np")["pixel_values"]
        pixels.append(np.asarray(batch[0]).transpose(1, 2, 0).astype(np.uint8))
    assert np.abs(pixels[0].astype(int) - pixels[1]).max() < 10
    return pixels[0]


def _blobs(rng, height, width, channels):
    """Smooth ramps with noise and hard edges: resampling with a wrong phase or filter shows."""
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([x * 255 / width, y * 255 / height, (x * y) % 256, (x + y) % 2 * 255], -1)
    noisy = ramps[..., :channels] + rng.normal(0, 40, (height, width, channels))
    return np.clip(noisy, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()

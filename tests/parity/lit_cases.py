"""What both sides of a comparison with LiT start from: sizes, weights, inputs. NumPy alone."""

import string
import zlib
from collections.abc import Mapping

import numpy as np

# As in `clip_cases`, every axis has a length of its own. BERT's heads are 64 channels wide.
VISION = {"image_size": 24, "patch_size": 8, "width": 60, "layers": 3, "heads": 4, "mlp": 150}
TEXT = {"width": 128, "layers": 2, "heads": 2, "mlp": 96, "positions": 24}
EMBED_DIM = 28
BATCH_SIZE = 6
CONTEXT_LENGTH = 16

VOCABULARY = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *string.digits,
    *".,!'&-[]?", *(f"##{letter}" for letter in string.ascii_lowercase), "photo", "dog", "##s",
    "cafe", "strass", "##ing", "猫", "σ", "##ας", "##σ", "ი",
)  # fmt: skip
VOCABULARY = tuple(dict.fromkeys(VOCABULARY))
CAPTIONS = (
    "",
    "A photo of the DOGS",
    "dogs, cats & a dog's café!",
    "naïve Straße ﬁn ＦＵＬＬ①",
    "猫cat猫 σας ΣΑΣ ი",
    "tab\tline\nnbsp\u00a0soft\u00adhyphen zero\u200bwidth ideographic\u3000space",
    "[CLS] [UNK] don't-stop",
    "x" * 100,
    "x" * 101,
    "é" * 100,
    "a word too many for the sixteen tokens that fit in one row of ids",
    "½ unknown ω word",
)


def random_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A value for every tensor, of a trained model's size; a function of its name and shape."""
    tensors = {}
    for name, shape in shapes.items():
        # RandomState, not default_rng: NumPy promises that this one's numbers never change.
        normal = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
        if name == "t":
            value = np.log(20) + 0.1 * normal
        elif name == "b":
            value = -5 + normal
        elif name.endswith("scale"):
            value = 1 + 0.2 * normal
        elif name.endswith("bias"):
            value = 0.2 * normal
        elif not name.endswith("kernel"):
            value = 0.5 * normal
        else:
            inputs = shape[:1] if len(shape) == 3 and "/out/" not in name else shape[:-1]
            value = 1.5 * np.prod(inputs) ** -0.5 * normal
        tensors[name] = np.asarray(value, np.float32)
    return tensors


def random_inputs() -> tuple[np.ndarray, np.ndarray]:
    """Images [b, h, w, 3], uint8, and tokens [b, l]: the class token, words, padding."""
    random = np.random.RandomState(0)
    side = VISION["image_size"]
    images = random.randint(0, 256, (BATCH_SIZE, side, side, 3)).astype(np.uint8)
    tokens = np.zeros((BATCH_SIZE, CONTEXT_LENGTH), np.int32)
    counts = np.linspace(0, CONTEXT_LENGTH - 1, BATCH_SIZE).astype(int)
    for row, words in zip(tokens, counts, strict=True):
        row[0] = VOCABULARY.index("[CLS]")
        row[1 : 1 + words] = random.randint(1, len(VOCABULARY), words)
    return images, tokens

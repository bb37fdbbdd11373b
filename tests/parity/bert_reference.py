"""Write `tests/golden/bert_uncased/`: a vocabulary, and texts with open_clip's ids for CLIPA.

    HF_HUB_OFFLINE=1 python -m tests.parity.bert_reference

Runs where open_clip and transformers are installed; flaxclip need not be. The vocabulary is a small
one of this script, of the kind of bert-base-uncased's: letters, their continuations, some words.
Ids are stored without the zeros at the end.
"""

import gzip
import json
import string
import tempfile
from importlib.metadata import version
from pathlib import Path

import transformers
from open_clip.tokenizer import HFTokenizer

from tests.parity.tokenizer_reference import HOSTILE

GOLDEN = Path(__file__).parents[1] / "golden" / "bert_uncased"
LENGTH = 32
_WORDS = "a photo of the cat dog two dogs café strasse resume world ##s ##ing ##ed ##fe un ##known"
_LETTERS = string.ascii_lowercase + string.digits + "αβγδεοςσυφτпривет猫写真고양이अ一"
TEXTS = {
    **{name: text for name, text in HOSTILE.items() if "surrogate" not in name},
    "markers": "a [SEP] b [CLS] [PAD] c [MASK] [UNK] [sep]",
    "a long text": "two dogs and a cat " * 20,
    "as long as there is room": "a " * 30,
    "one more": "a " * 31,
    "a long word": "a" * 99 + " " + "a" * 100 + " " + "a" * 101,
    "accents": "Café CAFÉ cafe\u0301 Straße ΟΔΟΣ",
}


def vocabulary() -> list[str]:
    """Tokens by their ids."""
    letters = list(dict.fromkeys(_LETTERS))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.punctuation, *letters]
    tokens += [f"##{letter}" for letter in letters]
    return list(dict.fromkeys([*tokens, *_WORDS.split()]))


def their_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    """The ids of open_clip's tokenizer for ViT-L-14-CLIPA, with the vocabulary in `folder`."""
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    return HFTokenizer(str(folder), LENGTH, strip_sep_token=True)(texts).tolist()


def main() -> None:
    """The command line."""
    GOLDEN.mkdir(exist_ok=True)
    text = "".join(f"{token}\n" for token in vocabulary())
    (GOLDEN / "vocab.txt").write_text(text, encoding="utf-8")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "vocab.txt").write_text(text, encoding="utf-8")
        rows = their_ids(folder, list(TEXTS.values()))
    ids = {}
    for name, row in zip(TEXTS, rows, strict=True):
        while row and row[-1] == 0:
            row.pop()
        ids[name] = {"text": TEXTS[name], "ids": row}
    made_by = f"open_clip {version('open_clip_torch')}, transformers {transformers.__version__}"
    content = json.dumps({"made_by": made_by, "length": LENGTH, "texts": ids}, indent=0)
    (GOLDEN / "ids.json.gz").write_bytes(gzip.compress(content.encode(), mtime=0))
    print(f"{len(ids)} texts by {made_by}")


if __name__ == "__main__":
    main()

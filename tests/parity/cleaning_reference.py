"""Write `tests/golden/text_cleaning/`: vocabularies, and ids by every way of cleaning texts.

    HF_HUB_OFFLINE=1 python tests/parity/cleaning_reference.py

Runs where open_clip, transformers and protobuf are installed; flaxclip need not be. The
vocabularies are small ones of this script: a SentencePiece model of the kind of SigLIP's, and one
of the kind of Gemma's, which transformers also saves as a tokenizer.json.
"""

import gzip
import io
import json
import shutil
import string
import tempfile
from importlib.metadata import version
from pathlib import Path

import sentencepiece
import transformers
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from tokenizer_reference import HOSTILE

GOLDEN = Path(__file__).parents[1] / "golden" / "text_cleaning"
LENGTH = 40
TEXTS = {
    **{name: text for name, text in HOSTILE.items() if "surrogate" not in name},
    "a sentence": "A Photo of a cat.",
    "an underscore": "World_wide, two_dogs!",
    "a marker of CLIP's": "a <|endoftext|> b <|startoftext|><|ENDOFTEXT|> c",
    "spaces on both sides": "  A Photo of a CAT! ",
    "punctuation first": "! a cat, \u2581 \u2581a dog",
    "SentencePiece's space first": "\u2581a cat",
    "two accents": "cafe\u0301 CAFÉ",
}
SENTENCES = [
    "a photo of a cat", "World_wide two_dogs!", "fish &amp; chips", "Café café ΟΔΟΣ οδος οδοσ",
    " ".join(string.ascii_letters + string.digits + string.punctuation),
] * 9  # fmt: skip


def train(path: Path, kind: str, **settings: int | str | bool) -> None:
    """A SentencePiece model of some hundred pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, model_type=kind, vocab_size=400,
        hard_vocab_limit=False, minloglevel=2, character_coverage=1.0,
        normalization_rule_name="identity", **settings,
    )  # fmt: skip
    path.write_bytes(model.getvalue())


def directory(folder: Path, name: str, vocabulary: Path, markers: tuple[str, str]) -> Path:
    """A tokenizer of that class of transformers, as a directory of a SigLIP."""
    folder = folder / name
    folder.mkdir()
    target = "tokenizer.model" if markers[1] == "<pad>" else "spiece.model"
    shutil.copyfile(vocabulary, folder / target)
    (folder / "config.json").write_text('{"model_type": "siglip"}')
    settings = {
        "tokenizer_class": name, "eos_token": markers[0], "pad_token": markers[1],
        "unk_token": "<unk>", "padding_side": "right", "add_bos_token": False,
        "add_eos_token": True,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def ids(tokenizer: transformers.PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Ids of all texts."""
    rows = tokenizer(
        list(TEXTS.values()), padding="max_length", truncation=True, max_length=LENGTH
    )["input_ids"]
    return dict(zip(TEXTS, rows, strict=True))


def open_clip_ids(tokenizer: SimpleTokenizer | HFTokenizer) -> dict[str, list[int]]:
    """Ids of all texts."""
    return dict(zip(TEXTS, tokenizer(list(TEXTS.values())).tolist(), strict=True))


def clip_tokenizer() -> transformers.CLIPTokenizer:
    """Of the merges that come with open_clip."""
    simple = SimpleTokenizer()
    vocabulary = dict(simple.encoder)
    vocabulary["<|startoftext|>"] = vocabulary.pop("<start_of_text>")
    vocabulary["<|endoftext|>"] = vocabulary.pop("<end_of_text>")
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=list(simple.bpe_ranks))


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    spiece, gemma = GOLDEN / "spiece.model", GOLDEN / "tokenizer.model"
    train(spiece, "unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    train(
        gemma, "bpe", pad_id=0, eos_id=1, bos_id=2, unk_id=3, byte_fallback=True,
        eos_piece="<eos>", bos_piece="<bos>", add_dummy_prefix=False,
        remove_extra_whitespaces=False,
    )  # fmt: skip
    cleans = ("lower", "whitespace", "canonicalize")
    clip = {clean: open_clip_ids(SimpleTokenizer(context_length=LENGTH, clean=clean))
            for clean in cleans}  # fmt: skip
    clip["transformers_clip"] = ids(clip_tokenizer())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        siglip_dir = directory(folder, "SiglipTokenizer", spiece, ("</s>", "</s>"))
        siglip = {
            "transformers_siglip": ids(transformers.AutoTokenizer.from_pretrained(siglip_dir))
        }
        t5 = directory(folder, "T5Tokenizer", spiece, ("</s>", "</s>"))
        for clean in cleans:
            rows = open_clip_ids(HFTokenizer(t5, context_length=LENGTH, clean=clean))
            # T5Tokenizer joins SentencePiece's own signs in a text, which SentencePiece does not.
            siglip[clean] = {name: row for name, row in rows.items() if "\u2581" not in TEXTS[name]}
        gemma_dir = directory(folder, "GemmaTokenizer", gemma, ("<eos>", "<pad>"))
        plain = transformers.AutoTokenizer.from_pretrained(gemma_dir)
        plain.backend_tokenizer.save(str(GOLDEN / "tokenizer.json"))
        siglip2 = {"none": ids(plain)} | {
            clean: open_clip_ids(HFTokenizer(gemma_dir, context_length=LENGTH, clean=clean))
            for clean in cleans
        }
        folder = directory(folder, "Siglip2Tokenizer", gemma, ("<eos>", "<pad>"))
        siglip2["transformers_siglip2"] = ids(transformers.AutoTokenizer.from_pretrained(folder))
    reference = {
        "made_with": {
            package: version(package)
            for package in ("open_clip_torch", "transformers", "tokenizers", "sentencepiece")
        },
        "texts": TEXTS,
        "ids": {"clip": clip, "siglip": siglip, "siglip2": siglip2},
    }
    with gzip.GzipFile(GOLDEN / "ids.json.gz", "wb", mtime=0) as file:
        file.write(json.dumps(reference, separators=(",", ":")).encode())
    print(f"{GOLDEN}: {len(TEXTS)} texts")


if __name__ == "__main__":
    main()

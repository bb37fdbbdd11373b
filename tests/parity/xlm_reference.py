"""Write `tests/golden/xlm_v/`: a vocabulary, and texts with open_clip's ids for MetaCLIP 2.

    HF_HUB_OFFLINE=1 python -m tests.parity.xlm_reference

Runs where open_clip and transformers are installed; flaxclip need not be. The vocabulary is a small
one of this script, stored as transformers stores XLM-V's. Ids are stored without the padding.
"""

import gzip
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import transformers
from open_clip.tokenizer import HFTokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tests.parity.bert_reference import TEXTS

GOLDEN = Path(__file__).parents[1] / "golden" / "xlm_v"
LENGTH = 32
PAD = 1
OTHERS = {"markers of XLM-V": "a <s> b </s> c <pad> d <unk> e <mask>"}


def vocabulary() -> Tokenizer:
    """A Unigram model in the pipeline of XLM-R's tokenizer.json."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(list(TEXTS.values()) * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def their_tokenizer(folder: Path, kind: str) -> HFTokenizer:
    """open_clip's tokenizer for the worldwide models, with the tokenizer.json in `folder`."""
    settings = {
        "tokenizer_class": kind,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return HFTokenizer(str(folder), LENGTH)


def main() -> None:
    """The command line."""
    GOLDEN.mkdir(exist_ok=True)
    vocabulary().save(str(GOLDEN / "tokenizer.json"))
    texts = TEXTS | OTHERS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.json").write_bytes((GOLDEN / "tokenizer.json").read_bytes())
        rows = their_tokenizer(folder, "PreTrainedTokenizerFast")(list(texts.values())).tolist()
    ids = {}
    for name, row in zip(texts, rows, strict=True):
        while row[-1] == PAD:
            row.pop()
        ids[name] = {"text": texts[name], "ids": row}
    made_by = f"open_clip {version('open_clip_torch')}, transformers {transformers.__version__}"
    content = json.dumps({"made_by": made_by, "length": LENGTH, "texts": ids}, indent=0)
    (GOLDEN / "ids.json.gz").write_bytes(gzip.compress(content.encode(), mtime=0))
    print(f"{len(ids)} texts by {made_by}")


if __name__ == "__main__":
    main()

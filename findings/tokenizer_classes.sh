#!/usr/bin/env bash
# transformers 5.24.0: the same tokenizer files give other ids by config.json's `model_type`.
#
# A tokenizer_config.json that says `"tokenizer_class": "GemmaTokenizer", "do_lower_case": true`, as
# SigLIP 2's conversion wrote it:
# - under model_type "siglip" (SigLIP 2 of fixed resolution), AutoTokenizer makes a GemmaTokenizer,
#   which does not know do_lower_case: "A CAT" and "a cat" have different ids;
# - under model_type "siglip2" it makes a Siglip2Tokenizer, whatever the file says, and lower-cases.
#
# Seen: "GemmaTokenizer lower-cases False", "Siglip2Tokenizer lower-cases True".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformers==5.24.0 tokenizers==0.23.3 sentencepiece==0.2.3 protobuf==7.36.2
cd "$folder"
HF_HUB_OFFLINE=1 venv/bin/python - <<'PYTHON'
import io
import json
from pathlib import Path

import sentencepiece
import transformers

transformers.logging.set_verbosity_error()


def train(path, kind, **settings):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a cat", "A CAT sat"] * 9), model_writer=model,
        model_type=kind, vocab_size=300, hard_vocab_limit=False, minloglevel=2,
        byte_fallback=True, **settings,
    )
    path.write_bytes(model.getvalue())


def opened(model_type, vocabulary, settings):
    folder = Path(model_type + settings["tokenizer_class"])
    folder.mkdir()
    (folder / vocabulary.name).write_bytes(vocabulary.read_bytes())
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return transformers.AutoTokenizer.from_pretrained(folder)


gemma = Path("tokenizer.model")
train(gemma, "bpe", pad_id=0, eos_id=1, bos_id=2, unk_id=3, eos_piece="<eos>", bos_piece="<bos>",
      add_dummy_prefix=False, normalization_rule_name="identity")
settings = {"tokenizer_class": "GemmaTokenizer", "do_lower_case": True, "eos_token": "<eos>",
            "pad_token": "<pad>", "unk_token": "<unk>"}
for model_type, expected in (("siglip", "GemmaTokenizer"), ("siglip2", "Siglip2Tokenizer")):
    tokenizer = opened(model_type, gemma, settings)
    lowers = tokenizer("A CAT")["input_ids"] == tokenizer("a cat")["input_ids"]
    print(type(tokenizer).__name__, "lower-cases", lowers)
    assert (type(tokenizer).__name__, lowers) == (expected, model_type == "siglip2")
PYTHON

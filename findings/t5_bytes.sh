#!/usr/bin/env bash
# A SentencePiece model that has tokens of bytes, as mT5's does, read by two libraries.
#
# sentencepiece 0.2.1 spells a character that the vocabulary lacks in bytes. transformers 5.24.0,
# whose T5Tokenizer reads the same file, makes it the unknown token: it rebuilds the vocabulary with
# `byte_fallback=False`.
#
# Seen: "sentencepiece: [261, 274, 276, 259, 229, 155, 134]",
#       "transformers:  [261, 274, 276, 259, 2]".
#
# Exits with 1 if the two agree.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 sentencepiece==0.2.1 protobuf==6.33.2
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import json
import sys

import sentencepiece

captions = ["a photo of a cat", "two dogs at the beach", "a red circle on a blue square"] * 9
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(captions), model_prefix="spiece", vocab_size=330, byte_fallback=True,
    pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
)
settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}
json.dump(settings, open("tokenizer_config.json", "w"))

from transformers import AutoTokenizer

text = "a cat \N{SNOWMAN}"
bytes_of_it = sentencepiece.SentencePieceProcessor(model_file="spiece.model").encode(text)
unknown = AutoTokenizer.from_pretrained(".")(text, add_special_tokens=False).input_ids
print("sentencepiece:", bytes_of_it)
print("transformers: ", unknown)
sys.exit(not (2 not in bytes_of_it and unknown[-1] == 2))
PY

#!/usr/bin/env bash
# tokenizers 0.23.3 and 0.22.2, below transformers 5.24.0 and 4.57.3. `Tokenizer.from_file` reads
# about one score in eight of a Unigram vocabulary off by its last bit, numbers of float32's
# precision, which are what SentencePiece has, included; Python's `json` reads all of them exactly.
# Two splits of a word that weigh the same no longer do then: `.` `..` and `..` `.` of a text's
# `...`. transformers 4's fast tokenizers are made by `from_file`; transformers 5 reads the scores by
# `json` and makes the model anew (`Unigram(vocab, ...)` in XLMRobertaTokenizer, T5Tokenizer and
# others). So one tokenizer.json makes other ids in the two.
#
# Seen:
#   transformers 5.24.0, tokenizers 0.23.3
#   written ['.', -11.462023735046387], read ['.', -11.462023735046388]
#   from_file: ▁hm .. .
#   AutoTokenizer: ▁hm . ..
#   of 20000 scores, read otherwise: 2634
#   transformers 4.57.3, tokenizers 0.22.2
#   written ['.', -11.462023735046387], read ['.', -11.462023735046388]
#   from_file: ▁hm .. .
#   AutoTokenizer: ▁hm .. .
#   of 20000 scores, read otherwise: 2634
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/scores.py" <<'PYTHON'
import json
import random
import struct
import sys
from pathlib import Path

import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

folder = Path(sys.argv[1])
file = folder / "tokenizer.json"
print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")


def write(pieces):
    """A tokenizer.json as XLM-R's is."""
    markers = [(marker, 0.0) for marker in ("<s>", "<pad>", "</s>", "<unk>")]
    engine = Tokenizer(models.Unigram([*markers, *pieces], 3, False))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    engine.save(str(file))


def vocabulary(text):
    return json.loads(text)["model"]["vocab"]


write([("▁hm", -2.5), (".", -11.462023735046387), ("..", -7.5202765464782715)])
read = Tokenizer.from_file(str(file))
print(f"written {vocabulary(file.read_text())[5]}, read {vocabulary(read.to_str())[5]}")
print("from_file:", *read.encode("hm...").tokens)
(folder / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
theirs = transformers.AutoTokenizer.from_pretrained(folder)
print("AutoTokenizer:", *theirs.tokenize("hm..."))

random.seed(0)
numbers = [-20 * random.random() for _ in range(20000)]
write((f"p{i}", struct.unpack("f", struct.pack("f", n))[0]) for i, n in enumerate(numbers))
pairs = zip(
    vocabulary(file.read_text()),
    vocabulary(Tokenizer.from_file(str(file)).to_str()),
    strict=True,
)
print("of 20000 scores, read otherwise:", sum(a != b for a, b in pairs))
PYTHON
for packages in "transformers==5.24.0 tokenizers==0.23.3" "transformers==4.57.3 tokenizers==0.22.2"; do
  environment=$folder/${packages%% *}
  python3 -m venv "$environment"
  # shellcheck disable=SC2086 # two packages
  "$environment/bin/pip" install --quiet $packages
  mkdir "$environment/files"
  "$environment/bin/python" "$folder/scores.py" "$environment/files" 2> "$folder/log" ||
    { cat "$folder/log"; exit 1; }
done | tee "$folder/seen"
diff <(sed -n 's/^#   //p' "$0") "$folder/seen"

#!/usr/bin/env bash
# transformers 5.24.0 and 4.57.3. `NllbTokenizer.set_src_lang_special_tokens(language)` changes the
# token that texts begin with, and the next call of the tokenizer changes it back: `__call__` begins
# with `_switch_to_input_mode`, which sets the special tokens of `src_lang`, and that has stayed
# `eng_Latn` (tokenization_utils_base.py, models/nllb/tokenization_nllb.py). Only `encode`, which
# does not switch, sees the new language. Setting the attribute `src_lang` lasts.
#
# open_clip 3.3.0 (`HFTokenizer.set_language`, its argument `language`) and CLIP_benchmark 1.6.2
# (`models/nllb_clip.py`) use that method, and then call the tokenizer: NLLB-CLIP is measured with
# English's token before captions of every language.
#
# Seen:
#   transformers 5.24.0
#   made: eng_Latn ▁un ▁chat </s>
#   set_src_lang_special_tokens("fra_Latn"), called: eng_Latn ▁un ▁chat </s>
#   set_src_lang_special_tokens("fra_Latn"), encode: fra_Latn ▁un ▁chat </s>
#   src_lang = "fra_Latn", called: fra_Latn ▁un ▁chat </s>
#   transformers 4.57.3
#   made: eng_Latn ▁un ▁chat </s>
#   set_src_lang_special_tokens("fra_Latn"), called: eng_Latn ▁un ▁chat </s>
#   set_src_lang_special_tokens("fra_Latn"), encode: fra_Latn ▁un ▁chat </s>
#   src_lang = "fra_Latn", called: fra_Latn ▁un ▁chat </s>
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/language.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, trainers

folder = Path(sys.argv[1])
markers = ["<s>", "<pad>", "</s>", "<unk>"]
engine = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
trainer = trainers.BpeTrainer(special_tokens=markers, show_progress=False)
engine.train_from_iterator(["un chat"] * 9, trainer)
engine.add_special_tokens(["eng_Latn", "fra_Latn", "<mask>"])
engine.save(str(folder / "tokenizer.json"))
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "NllbTokenizer"}))
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)


def say(what, ids):
    print(f"{what}: {' '.join(tokenizer.convert_ids_to_tokens(ids))}")


print("transformers", transformers.__version__)
say("made", tokenizer("un chat").input_ids)
change = 'set_src_lang_special_tokens("fra_Latn")'
tokenizer.set_src_lang_special_tokens("fra_Latn")
say(f"{change}, called", tokenizer("un chat").input_ids)
tokenizer.set_src_lang_special_tokens("fra_Latn")
say(f"{change}, encode", tokenizer.encode("un chat"))
tokenizer.src_lang = "fra_Latn"
say('src_lang = "fra_Latn", called', tokenizer("un chat").input_ids)
PYTHON
for package in transformers==5.24.0 transformers==4.57.3; do
  python3 -m venv "$folder/$package"
  "$folder/$package/bin/pip" install --quiet "$package"
  mkdir "$folder/files-$package"
  "$folder/$package/bin/python" "$folder/language.py" "$folder/files-$package" 2> "$folder/log" ||
    { cat "$folder/log"; exit 1; }
done | tee "$folder/seen"
diff <(sed -n 's/^#   //p' "$0") "$folder/seen"

"""Captions in twenty languages, and vocabularies that are learned from them."""

import functools
import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from flaxclip.data.tokenizers.sentencepiece_file import precompiled_charsmap

# Five things, and five places, in each language.
_WORDS = {
    "en": ("a cat|two dogs|the old bridge|an apple|my bicycle",
           "on the roof|in the snow|by the sea|at night|in the kitchen"),
    "de": ("eine Katze|zwei Hunde|die alte Brücke|ein Apfel|mein Fahrrad",
           "auf dem Dach|im Schnee|am Meer|bei Nacht|in der Küche"),
    "fr": ("un chat|deux chiens|le vieux pont|une pomme|mon vélo",
           "sur le toit|dans la neige|près de la mer|la nuit|à l'intérieur"),
    "es": ("un gato|dos perros|el puente viejo|una manzana|mi bicicleta",
           "en el tejado|en la nieve|junto al mar|de noche|en la cocina"),
    "pt": ("um gato|dois cães|a ponte velha|uma maçã|minha bicicleta",
           "no telhado|na neve|perto do mar|à noite|na cozinha"),
    "it": ("un gatto|due cani|il vecchio ponte|una mela|la mia bicicletta",
           "sul tetto|nella neve|vicino al mare|di notte|in cucina"),
    "pl": ("kot|dwa psy|stary most|jabłko|mój rower",
           "na dachu|w śniegu|nad morzem|w nocy|w kuchni"),
    "cs": ("kočka|dva psi|starý most|jablko|moje kolo",
           "na střeše|ve sněhu|u moře|v noci|v kuchyni"),
    "fi": ("kissa|kaksi koiraa|vanha silta|omena|polkupyöräni",
           "katolla|lumessa|meren rannalla|yöllä|keittiössä"),
    "ru": ("кошка|две собаки|старый мост|яблоко|мой велосипед",
           "на крыше|в снегу|у моря|ночью|на кухне"),
    "uk": ("кішка|два собаки|старий міст|яблуко|мій велосипед",
           "на даху|у снігу|біля моря|вночі|на кухні"),
    "el": ("μια γάτα|δύο σκύλοι|η παλιά γέφυρα|ένα μήλο|το ποδήλατό μου",
           "στη στέγη|στο χιόνι|δίπλα στη θάλασσα|τη νύχτα|στην κουζίνα"),
    "tr": ("bir kedi|iki köpek|eski köprü|bir elma|bisikletim",
           "çatıda|karda|denizin yanında|gece|mutfakta"),
    "ar": ("قطة|كلبان|الجسر القديم|تفاحة|دراجتي",
           "على السطح|في الثلج|بجانب البحر|في الليل|في المطبخ"),
    "he": ("חתול|שני כלבים|הגשר הישן|תפוח|האופניים שלי",
           "על הגג|בשלג|ליד הים|בלילה|במטבח"),
    "hi": ("एक बिल्ली|दो कुत्ते|पुराना पुल|एक सेब|मेरी साइकिल",
           "छत पर|बर्फ में|समुद्र के पास|रात में|रसोई में"),
    "th": ("แมว|สุนัขสองตัว|สะพานเก่า|แอปเปิล|จักรยานของฉัน",
           "บนหลังคา|ในหิมะ|ริมทะเล|ตอนกลางคืน|ในครัว"),
    "zh": ("一只猫|两只狗|那座老桥|一个苹果|我的自行车",
           "在屋顶上|在雪地里|在海边|在夜里|在厨房里"),
    "ja": ("一匹の猫|二匹の犬|古い橋|りんご|私の自転車",
           "屋根の上|雪の中|海のそば|夜に|台所で"),
    "ko": ("고양이 한 마리|개 두 마리|오래된 다리|사과|내 자전거",
           "지붕 위에서|눈 속에서|바닷가에서|밤에|부엌에서"),
}  # fmt: skip
_FORMS = ("{} {}", "{}, {}!", "“{}” — {} (№ 7)", "{}  ({})...  42%")

CAPTIONS = [
    (form.format(thing, place).upper() if number % 7 == 0 else form.format(thing, place))
    for things, places in _WORDS.values()
    for number, (form, thing, place) in enumerate(
        (form, thing, place)
        for form in _FORMS
        for thing in things.split("|")
        for place in places.split("|")
    )
]
"""A hundred of each language."""

MARKERS = ("<s>", "<pad>", "</s>", "<unk>")
MASK = tokenizers.AddedToken("<mask>", lstrip=True, special=True)


def sentencepiece_model(**settings) -> bytes:
    """A SentencePiece model of some hundred pieces, normalized as mT5's and NLLB's are."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS[::2]), model_writer=model, vocab_size=650, minloglevel=2,
        normalization_rule_name="nmt_nfkc", character_coverage=0.98, hard_vocab_limit=False,
        **settings,
    )  # fmt: skip
    return model.getvalue()


@functools.cache
def nmt_nfkc() -> bytes:
    """SentencePiece's table of that name, which mT5, XLM-R and NLLB normalize by."""
    return precompiled_charsmap(sentencepiece_model())


def write_mt5(folder: Path) -> Path:
    """A vocabulary as google/mt5-base has it: with tokens of bytes."""
    path = folder / "spiece.model"
    path.write_bytes(
        sentencepiece_model(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, byte_fallback=True)
    )
    return path


def write_tips(folder: Path) -> Path:
    """A vocabulary as google/tipsv2-b14 has it: SentencePiece's BPE with tokens of bytes."""
    path = folder / "tokenizer.model"
    path.write_bytes(
        sentencepiece_model(
            pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, byte_fallback=True, model_type="bpe"
        )
    )
    return path


def write_nllb(folder: Path) -> Path:
    """A vocabulary as facebook/nllb-200-distilled-600M has it, with two of its languages."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(nmt_nfkc()), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=list(MARKERS), show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS[::2], trainer)
    tokenizer.add_special_tokens(["eng_Latn", "fra_Latn", "<mask>"])
    return _saved(tokenizer, folder)


def write_roberta(folder: Path) -> Path:
    """A vocabulary as FacebookAI/roberta-base has it: of bytes."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(MARKERS), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(CAPTIONS[::2], trainer)
    tokenizer.add_special_tokens([MASK])
    start, end = (MARKERS[0], 0), (MARKERS[2], 2)
    tokenizer.post_processor = processors.RobertaProcessing(end, start, add_prefix_space=False)
    return _saved(tokenizer, folder)


def write_xlm_r(folder: Path) -> Path:
    """A vocabulary as FacebookAI/xlm-roberta-base has it."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Precompiled(nmt_nfkc())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=list(MARKERS), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CAPTIONS[::2], trainer)
    tokenizer.add_special_tokens([MASK])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return _saved(tokenizer, folder)


def _saved(tokenizer: tokenizers.Tokenizer, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def write_settings(folder: Path, kind: str, **more) -> None:
    """The tokenizer_config.json that names transformers' class."""
    settings = {"tokenizer_class": kind, "eos_token": "</s>", "pad_token": "<pad>"}
    settings |= {"unk_token": "<unk>", **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

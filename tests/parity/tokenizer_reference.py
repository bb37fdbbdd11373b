"""Write `tests/golden/tokenizer_ids.json.gz`: texts, and the ids that open_clip gives them.

    python tests/parity/tokenizer_reference.py /usr/share/openclipart/svg

Runs where open_clip is installed; flaxclip need not be. The captions are the titles, descriptions
and keywords of Open Clip Art (public domain; Debian's package `openclipart-svg`). Ids are stored
without the padding.
"""

import gzip
import json
import platform
import sys
import xml.etree.ElementTree as ElementTree
from importlib.metadata import version
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer_ids.json.gz"
DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"

HOSTILE = {
    "empty": "",
    "only spaces": " \t\n\u00a0\u3000 ",
    "only punctuation": "?!... --- ###",
    "upper case": "A PHOTO OF A CAT",
    "padding's own text": "! !! !!!",
    "html entities": "fish &amp; chips &lt;b&gt; caf&eacute; &copy;2020 &#39;hi&#39; &hearts;",
    "html entities escaped twice": "Tom &amp;amp; Jerry &amp;lt;br&amp;gt; &amp;eacute;",
    "html entities beside a tag": "<p>fish &amp; chips &eacute;</p>",
    "html entities escaped twice beside a tag": "<p>a &amp;amp; b &amp;amp;eacute; c</p>",
    "html entity without its end": "AT&T, R&B, &notit; &amp &ampx &unknown; &#",
    "html entities of nothing": "&#0; &#xD800; &#x110000; &#128; &#xFFFE; &#8203; &ZeroWidthSpace;",
    "html entities of whitespace": "a&nbsp;b&Tab;c&NewLine;d&#x1c;e&#x85;f",
    "html entity of a ligature": "&#xfb01;sh &#64262;reet &fflig;",
    "mojibake": "The cafÃ© donâ€™t serve crÃ¨me brÃ»lÃ©e â€” sÃ£o paulo âœ”",
    "mojibake made twice": "cafÃƒÂ© naÃƒÂ¯ve",
    "mojibake of emoji": "ðŸ˜€ smile ðŸ±",
    "mojibake of Cyrillic": "Ð¿Ñ€Ð¸Ð²ÐµÑ‚",
    "curly quotes": "“it’s” ‘twas’ „so“ «there» ‚low‘",
    "ligatures and full width": "ﬁne ﬂag ＣＬＩＰ １２３ ｶﾀｶﾅ ĳ ǆ",
    "emoji": "😀😃 a 🐱 and 🐶🐶🐶 ❤️ ✔ ☃",
    "emoji with joiners": "👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇫🇷🇩🇪 1️⃣",
    "Chinese": "一只猫的照片,在雪地里。",
    "Japanese": "猫の写真、ネコ・ねこ「100円」",
    "Korean": "고양이 사진 한 장",
    "Korean as separate jamo": "\u1100\u1161\u11a8\u1112\u1161\u11ab",
    "rare Chinese": "\u9fff \U00020000\U0002a6df \U00030000\U00031350\U000323af",
    "Arabic and Hebrew": "صورة قطة ١٢٣ תמונה של חתול",
    "Hindi, Thai, Tamil": "बिल्ली की तस्वीर १२३ ภาพถ่ายแมว பூனை",
    "Greek final sigma": "ΟΔΥΣΣΕΥΣ ΦΩΤΟ",
    "Turkish dotted I": "İSTANBUL ISPARTA ılık İ",
    "German capital sharp s": "STRAẞE straße",
    "long s in contractions": "it'ſ <ſtart_of_text> \u212aelvin \u212a'S",
    "combining marks": "e\u0301le\u0300ve n\u0303 z\u0351\u036b\u0343a\u0306\u030bl\u034eg\u0321o",
    "combining mark alone": "\u0301 \u0301\u0301 a \u20dd",
    "zero-width characters": "a\u200bb\u200cc\u200dd\u2060e\ufefff \ufeffstart\u00adsoft",
    "directions": "abc\u202edef\u202c \u2066x\u2069 \u200etext\u200f",
    "control characters": "".join(map(chr, range(1, 32))) + "cat\x7f\x80\x85\x9f",
    "null characters": "a\x00b \x00",
    "separators that only Python splits at": "a\x1cb\x1dc\x1ed\x1fe",
    "all of Unicode's spaces": "a\u1680b\u2003c\u2028d\u2029e\u202ff\u205fg\u3000h\u180ei",
    "carriage returns": "one\r\ntwo\rthree\n\nfour\x0bfive\x0csix",
    "terminal colours": "\x1b[31mred\x1b[0m cat",
    "lone surrogates": "cat \ud800 dog \udfff",
    "surrogate pairs": "\ud83d\ude00 smile",
    "private use and non-characters": "\ue000\U000f0000\uffff\ufffe\ufffd\U0010ffff",
    "letters of Unicode 15 to 17": "a\u0cf3b \U0001df2a\U0001e4d0 \ua7cb\u1c89\U000105c0 \ua7ce",
    "digits": "2024-01-31 3.14 1,000,000 0x1F 007 ½ ² Ⅷ ⑦",
    "apostrophes": "it's I'm we've they'll he'd don't you're IT'S rock'n'roll 's'll 'tis ''s",
    "apostrophes curled by entity": "it&rsquo;s don&apos;t I&#8217;ve",
    "underscores and paths": "IMG_0001.JPG C:\\pics\\my_cat.png https://example.com/?q=a&b=c#d",
    "punctuation against words": '(cat),[dog];{bird}:"fish"/cow\\pig|hen~`@#$%^&*+=<>',
    "end marker of OpenAI": "a cat<|endoftext|> a dog <|startoftext|>",
    "markers": "<start_of_text> a cat <end_of_text> a dog",
    "markers touching words": "cat<end_of_text>dog<start_of_text><end_of_text>",
    "markers touching punctuation": "cat!<end_of_text>. dog'<start_of_text>",
    "markers in capitals": "<START_OF_TEXT> <End_Of_Text>",
    "markers by entity": "&lt;end_of_text&gt; cat &amp;lt;start_of_text&amp;gt;",
    "markers broken": "<end_of_text <start of text> end_of_text>",
    "as many tokens as fit": " ".join(["cat"] * 75),
    "one token too many": " ".join(["cat"] * 76),
    "far too many tokens": "a very long caption of a cat, " * 200,
    "cut inside an emoji": "cat " * 74 + "👩🏽‍🚀",
    "long word": "a" * 5_000,
    "long word of many merges": "supercalifragilisticexpialidocious" * 40,
    "long run of punctuation": "!?" * 1_000,
    "long number": "1234567890" * 30,
    "python's own words": "None nan \\n \\u0041 %s {} {0}",
}


def read_captions(folder: Path) -> list[str]:
    """Every distinct title, description and keyword list of the SVG files, in order of path."""
    captions: dict[str, None] = {}
    for path in sorted(folder.rglob("*.svg")):
        for work in ElementTree.parse(path).getroot().iter():
            if work.tag.endswith("}Work"):
                keywords = work.iterfind(f"{DUBLIN_CORE}subject//*")
                for text in (
                    work.findtext(f"{DUBLIN_CORE}title"),
                    work.findtext(f"{DUBLIN_CORE}description"),
                    ", ".join(k.text for k in keywords if k.tag.endswith("}li") and k.text),
                ):
                    if text and text.strip():
                        captions[text] = None
    return list(captions)


def main() -> None:
    captions = read_captions(Path(sys.argv[1]))
    if len(captions) < 2_000:
        sys.exit(f"only {len(captions)} captions in {sys.argv[1]}: expected 2,000 or more")
    tokenizer = SimpleTokenizer()

    def trimmed_ids(text: str) -> list[int]:
        row = tokenizer([text])[0].tolist()
        # Padding is 0, which is also the id of "!" inside a word: cut after the last end marker.
        return row[: len(row) - row[::-1].index(tokenizer.eot_token_id)]

    reference = {
        "made_with": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("open_clip_torch", "ftfy", "regex")},
        },
        "captions": [[text, trimmed_ids(text)] for text in captions],
        "hostile": {name: [text, trimmed_ids(text)] for name, text in HOSTILE.items()},
    }
    with gzip.GzipFile(GOLDEN, "wb", mtime=0) as file:
        file.write(json.dumps(reference, separators=(",", ":")).encode())
    print(f"{GOLDEN}: {len(captions)} captions, {len(HOSTILE)} hostile texts")


if __name__ == "__main__":
    main()

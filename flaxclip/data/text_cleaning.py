"""What tokenizers of captions from the web do before they take them apart."""

import html

import ftfy


def mend(text: str) -> str:
    """Mend mojibake and resolve HTML entities (twice: `&amp;lt;`), as open_clip does."""
    # Most captions are plain ASCII, in which there is nothing to mend: half of the work saved.
    if not (text.isascii() and text.isprintable()) or "&" in text:
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return text

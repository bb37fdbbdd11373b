"""The tokenizers by their names, with the ids that published models were trained on."""

from flaxclip.data.tokenizers.base import Tokenizer
from flaxclip.data.tokenizers.bert import BertTokenizer, UncasedBertTokenizer
from flaxclip.data.tokenizers.clip import CLIPTokenizer
from flaxclip.data.tokenizers.multilingual import MultilingualTokenizer
from flaxclip.data.tokenizers.siglip import SigLIPTokenizer
from flaxclip.data.tokenizers.text_cleaning import cleaning_of
from flaxclip.data.tokenizers.tips import TIPSTokenizer
from flaxclip.errors import InputError
from flaxclip.models.inputs import TokenizerConfig

TOKENIZERS = ("clip", "siglip", "siglip2", "bert", "bert_uncased", "xlm_v", "mt5", "nllb", "tips")


def load_tokenizer(
    config: TokenizerConfig, context_length: int, vocab_size: int | None = None
) -> Tokenizer:
    """The tokenizer that `config` describes, making rows of `context_length` ids.

    Args:
        config: its name, how texts are cleaned, and the file of its vocabulary.
        context_length: ids a row.
        vocab_size: ids that the text tower has embeddings for. If None, all that there are.

    Raises:
        InputError: no tokenizer has that name, it has no such language, its texts are not cleaned
            so, it cannot make rows that short, or not read `file`, or it makes ids that the text
            tower does not know.
    """
    name, file, cleaning = config.name, config.file, config.cleaning
    if config.language is not None and name != "nllb":
        raise InputError(
            f"tokenizer.language is {config.language!r}, and tokenizer.name {name!r}\n"
            "of nllb alone do captions begin with their language: leave it out"
        )
    match name:
        case "clip":
            tokenizer: Tokenizer = CLIPTokenizer(context_length, cleaning)
        case "siglip":
            tokenizer = SigLIPTokenizer(context_length, file, 1, cleaning)
        case "siglip2":
            tokenizer = SigLIPTokenizer(context_length, file, 2, cleaning)
        case "bert":
            cleaning_of(name, cleaning)
            tokenizer = BertTokenizer(context_length, file)
        case "bert_uncased":
            tokenizer = UncasedBertTokenizer(context_length, file, cleaning)
        case "xlm_v" | "mt5" | "nllb":
            tokenizer = MultilingualTokenizer(name, context_length, file, cleaning, config.language)
        case "tips":
            tokenizer = TIPSTokenizer(context_length, file, cleaning)
        case _:
            raise InputError(
                f"unknown tokenizer {name!r}\nexpected one of: {', '.join(TOKENIZERS)}"
            )
    # JAX would take the last embedding for every id beyond it, and say nothing.
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        raise InputError(
            f"the vocabulary{f' in {file}' if file else ''} has {tokenizer.vocab_size:,} tokens, "
            f"but the text tower knows {vocab_size:,}\n"
            "it is another one than the model was trained with; name that one's file, or set "
            "--model.text.vocab-size for a new model"
        )
    return tokenizer

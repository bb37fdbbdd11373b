"""Text towers of transformers by their configurations; where transformers is."""

from typing import Any

from flaxclip.models.text_transformer import TextConfig


def their_config(text: TextConfig) -> Any:
    """transformers' configuration of a text tower."""
    import transformers

    sizes = {"vocab_size": text.vocab_size}
    if text.family == "mt5":
        return transformers.MT5Config(
            **sizes,
            d_model=text.width,
            d_ff=text.mlp_width,
            d_kv=text.width // text.heads,
            num_layers=text.layers,
            num_heads=text.heads,
        )
    if text.family == "nllb":
        return transformers.M2M100Config(
            **sizes,
            d_model=text.width,
            encoder_ffn_dim=text.mlp_width,
            encoder_layers=text.layers,
            encoder_attention_heads=text.heads,
            decoder_layers=1,
            decoder_ffn_dim=16,
            decoder_attention_heads=1,
            max_position_embeddings=1024,
        )
    return transformers.XLMRobertaConfig(
        **sizes,
        hidden_size=text.width,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        intermediate_size=text.mlp_width,
        max_position_embeddings=text.position_count,
        type_vocab_size=1,
        layer_norm_eps=text.norm_eps,
    )

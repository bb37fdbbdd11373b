"""Captions -> token ids: CLIP's, SigLIP's and BERT's tokenizers."""

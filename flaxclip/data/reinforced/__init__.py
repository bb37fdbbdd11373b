"""Examples with what a teacher makes of them, stored: crops, captions and embeddings of both."""

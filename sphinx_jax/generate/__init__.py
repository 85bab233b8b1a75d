"""Answers from a trained model: loading, prompt prefill, cached decoding, sampling, stop texts."""

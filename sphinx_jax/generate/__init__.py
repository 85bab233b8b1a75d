"""Answers from a trained model: prompt prefill, cached decoding, conversation."""

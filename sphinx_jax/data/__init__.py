"""Bytes -> batches: dialog template, tokenizer, images, mixture, packing and their pipeline."""

"""Language models: embedded sequences -> logits, with and without a cache of keys and values."""

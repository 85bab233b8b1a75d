"""Floor 3: from a batch to logits. `sphinx.py` is the model; `encoders/` and `llms/` are its parts, one file each."""

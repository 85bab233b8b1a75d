"""Floor 3: bytes -> batch. Sources, tasks, tokenizer, dialog, images, packing, and the pipeline that joins them."""

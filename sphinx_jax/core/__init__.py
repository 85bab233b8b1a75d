"""The lowest layer, used by every package: config, errors, files, trees, the batch contract."""

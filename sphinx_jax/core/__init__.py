"""Floor 0: what every room may use. Tables, trees, errors, progress, configs, the batch contract, coordinates as text."""

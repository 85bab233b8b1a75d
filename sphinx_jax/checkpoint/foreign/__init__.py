"""Other people's checkpoint files: opened without reading a weight, read and written tensor by tensor."""

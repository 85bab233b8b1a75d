"""Visual encoders: float32[B,Y,X,3] CLIP-normalised views -> a class token and a grid of patch features, or query tokens."""

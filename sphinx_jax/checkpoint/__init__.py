"""Checkpoints on disk: one layout, everything inside that inference needs, restored onto the mesh in hand."""

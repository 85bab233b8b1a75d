"""Checkpoints on disk: Orbax checkpoints of runs, mixes of them, and foreign formats."""

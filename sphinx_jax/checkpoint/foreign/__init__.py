"""Weights of other projects: formats, their detection, import and export."""

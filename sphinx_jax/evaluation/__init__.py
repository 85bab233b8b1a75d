"""Scores of finished runs: generation on a held-out split, each task's own metric, bootstrap intervals."""

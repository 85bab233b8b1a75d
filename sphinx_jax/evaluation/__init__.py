"""Scores of models: answers by generation, each task's metric, bootstrap intervals, benchmarks."""

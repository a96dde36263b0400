"""Runs: their configuration, their files, training, evaluation and sweeps."""

__all__ = []

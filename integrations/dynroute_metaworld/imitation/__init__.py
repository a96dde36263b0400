"""Demonstrations of the scripted policies, and policies cloned from them."""

__all__ = []

"""Data, figures and pages of runs, and films of their policies."""

from .export import analyze
from .film import render
from .page import write_report

__all__ = ["analyze", "render", "write_report"]

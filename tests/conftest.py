"""Shared by all tests: the names that doctests use."""

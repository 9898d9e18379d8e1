"""Measurements: each module is a command that prints a table and its bars, and can write JSON."""

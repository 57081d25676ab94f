"""Measurements, each a command; their newest figures stand in README.md."""

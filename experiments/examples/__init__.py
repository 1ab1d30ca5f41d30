"""Numbered examples; each runs alone."""

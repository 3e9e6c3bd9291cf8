"""Measures; changes nothing."""

"""Scrubbing: pure treatments of values, by rules that are data."""

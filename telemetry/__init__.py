"""Milchglas: telemetry that keeps a privacy notice."""

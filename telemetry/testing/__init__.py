"""Test tools for those who write a broker or a sink. Public; needs pytest."""

"""Checks that ordinary tests and the mutation run share: each takes what it checks as argument."""

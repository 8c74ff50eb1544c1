"""Doubles with behaviour, shared by the tests."""

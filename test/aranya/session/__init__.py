"""Tests of ``aranya.session``."""

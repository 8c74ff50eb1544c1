"""Tests of ``aranya``."""

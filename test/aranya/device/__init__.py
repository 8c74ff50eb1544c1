"""Tests of ``aranya.device``."""

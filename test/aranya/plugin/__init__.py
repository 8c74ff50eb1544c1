"""Tests of ``aranya.plugin``."""

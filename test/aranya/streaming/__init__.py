"""Tests of ``aranya.streaming``."""

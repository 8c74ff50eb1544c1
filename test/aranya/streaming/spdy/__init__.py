"""Tests of ``aranya.streaming.spdy``."""

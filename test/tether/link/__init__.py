"""Tests of ``tether.link``."""

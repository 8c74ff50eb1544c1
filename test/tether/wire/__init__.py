"""Tests of ``tether.wire``."""

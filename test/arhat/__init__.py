"""Tests of ``arhat``."""

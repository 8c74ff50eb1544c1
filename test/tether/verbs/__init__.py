"""Tests of ``tether.verbs``."""

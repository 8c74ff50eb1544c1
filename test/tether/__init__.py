"""Tests of ``tether``."""

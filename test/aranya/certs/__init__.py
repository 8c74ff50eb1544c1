"""Tests of ``aranya.certs``."""

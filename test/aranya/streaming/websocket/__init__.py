"""Tests of ``aranya.streaming.websocket``."""

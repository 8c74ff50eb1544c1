"""Tests of the commands that the agent brings."""

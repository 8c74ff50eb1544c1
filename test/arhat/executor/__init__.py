"""Tests of what the agent executes."""

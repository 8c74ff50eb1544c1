"""Tests of ``aranya.kubelet``."""

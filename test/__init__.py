"""The suites: each folder mirrors the package it speaks for; `cluster` runs a real Kubernetes."""

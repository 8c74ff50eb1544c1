"""The version of both daemons; ``setup.py`` reads it from here."""

VERSION = "0.1.0"

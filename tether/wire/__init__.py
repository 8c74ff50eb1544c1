"""The law of the link, without I/O: bytes in, events out, bytes out."""

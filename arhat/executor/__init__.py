"""One verb each: a channel on one side, the machine on the other."""

"""Speed and size of the daemons as ratios of one run: beside OpenSSH, and beside an API server alone."""

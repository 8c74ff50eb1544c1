"""
A real Kubernetes control plane for the suites and the demo.

`build` makes the programs once, `binaries` finds them, `plane` runs them, `kubectl` speaks to them.
None of these modules imports Twisted: trial and `make demo` use them alike.
"""

# make demo      a cluster, a device and a few kubectl commands, left running until Ctrl-C
# make test      every test, with a real control plane
# make soak      the long tests, whole: 1 GiB through every door and 100 cuts, 10,000 execs; an hour or more
# make lint      ruff and mypy
# make bench     speed and size, as ratios against ssh and the bare API server
# All set-up goes into the checkout (.venv) and the user's cache.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS ?= test

# Only a KUBECONFIG from make's command line names a cluster to use; the environment's never does.
ifeq ($(origin KUBECONFIG),command line)
DEMO_CLUSTER := --kubeconfig $(KUBECONFIG)
endif
unexport KUBECONFIG

.PHONY: demo test soak lint bench controlplane packages venv clean

demo: venv
	@$(BIN)/python -m test.cluster.demo $(DEMO_CLUSTER)

test: venv packages controlplane
	$(BIN)/python -m twisted.trial $(TESTS)

soak: venv packages controlplane
	EXAMPLES_TIMES=30 $(BIN)/python -m twisted.trial --temp-directory=_trial_temp_soak test.tether.wire.test_resume test.tether.wire.test_liar
	$(BIN)/python -m twisted.trial --temp-directory=_trial_temp_soak test.cluster.soak

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy aranya arhat tether

bench: venv controlplane
	$(BIN)/python -m test.bench

# What the tests use of Debian beside the control plane: real journals, namespaces, a terminal's session.
DEBIAN := systemd systemd-journal-remote util-linux iproute2 procps tar
packages:
	@missing=$$(for name in $(DEBIAN); do dpkg -s $$name >/dev/null 2>&1 || echo $$name; done); \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then \
	    echo "Installing $$missing"; apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  else echo "Some tests will be skipped; as root: apt-get install" $$missing; fi; fi

controlplane: venv
	@$(BIN)/python -m test.cluster.build

venv: $(VENV)/.ready

$(VENV)/.ready: setup.py constraints.txt
	@echo "Setting up $(VENV) (about a minute)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV) || { echo "python3-venv is needed: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[controller,agent,dev]'
	@touch $@

clean:
	rm -rf $(VENV) .demo build *.egg-info _trial_temp*

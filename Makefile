# make help lists the targets. Everything goes into .venv; nothing outside this folder changes, except that `make test`
# as root installs Debian packages.

SHELL := bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all:
RUN := $(VENV)/bin/python -m
DEBIAN := tshark tcpdump zstd iproute2:ip iptables systemd:systemd-analyze linuxptp:ptp4l chromium curl  # package, or package:its command
SAME_INTERPRETED = cli config doctor lab notify signals metrics ops bench bench_inline senders imports top live_end \
  street firewall control classes rates lab_stalls playback player \
  load load_learn load_command store ingest service api serve events_in page page_browser api_schema \
  curves choice prefixes selection dns dns_server lab_ptp  # no kernels in them
CHECKED_TESTS = $(wildcard tests/test_*mutat*.py tests/test_*damage*.py tests/test_wire*.py tests/test_flowtable.py \
  tests/test_bpf.py tests/test_wheel.py tests/test_pacing.py tests/test_classify.py)

.PHONY: help demo debian test lint golden defaults bench clean

help:
	@echo "make demo      install into .venv, write the sample captures, replay them: tables, a rate, JSON lines"
	@echo "make test      install what tests need and run all of them: compiled, interpreted with coverage, bounds-checked"
	@echo "make golden    the sample captures against the events expected of them; shows a diff"
	@echo "make defaults  write qoetap/defaults.yaml anew from the detectors' options"
	@echo "make bench     packets per second against the peers that are installed, into bench/results/latest"
	@echo "make clean     remove what these made, .venv too"

$(VENV)/base: setup.py pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python found: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments: apt install python3-venv" >&2; exit 1; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) "setuptools>=70.1"
	$(PIP) --no-build-isolation -e ".[parquet]"
	@touch $@

$(VENV)/dev: $(VENV)/base
	$(PIP) --no-build-isolation -e ".[dev]"
	@touch $@

demo: $(VENV)/base
	@mkdir -p demo
	@$(VENV)/bin/python pcaps/make.py
	@$(VENV)/bin/qoetap replay pcaps -o table -o demo/events.jsonl --stats demo/stats.json; s=$$?; \
	  test $$s -eq 0 -o $$s -eq 4  # 4: some of the sample captures are damaged, on purpose
	@echo "The events above are in demo/events.jsonl, one JSON object a line; counts and timings in demo/stats.json."

debian:
	@missing=; for tool in $(DEBIAN); do \
	  PATH="$$PATH:/usr/sbin:/sbin" command -v $${tool#*:} >/dev/null || missing="$$missing $${tool%:*}"; done; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing; \
	elif [ -n "$$missing" ]; then echo "missing, so their tests are skipped: $$missing (apt install$$missing)" >&2; fi

lint: $(VENV)/dev
	$(RUN) ruff check .

test: $(VENV)/dev debian lint
	$(RUN) pytest -n 2 --dist worksteal
	rm -f .coverage .coverage.*
	NUMBA_DISABLE_JIT=1 $(RUN) coverage run -m pytest -n 2 --dist worksteal $(SAME_INTERPRETED:%=--ignore=tests/test_%.py)
	$(RUN) coverage combine --quiet
	$(RUN) coverage report
	NUMBA_BOUNDSCHECK=1 $(RUN) pytest -n 2 --dist worksteal $(CHECKED_TESTS)

golden: $(VENV)/dev
	$(RUN) pytest tests/test_golden.py

defaults: $(VENV)/base
	$(VENV)/bin/qoetap check --defaults > qoetap/defaults.yaml.new
	mv qoetap/defaults.yaml.new qoetap/defaults.yaml

bench: $(VENV)/base
	$(PIP) --no-build-isolation -e ".[bench]"
	$(RUN) bench

clean:
	rm -rf $(VENV) demo build *.egg-info .coverage .coverage.* .pytest_cache .ruff_cache .hypothesis
	rm -f pcaps/*.pcap pcaps/*.pcapng
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

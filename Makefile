# `make demo` and `make test` set up everything they need on a fresh machine (Debian, Python >= 3.11).
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
RUN    ?= runs/demo

ARCH   ?= amd64

.PHONY: demo phone test check setup system clean help

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(STAMP)  ## profile, search, train, measure again, report: the main job on this machine (about 10 minutes after set-up)
	$(BIN)/archsearch run examples/demo.toml --run $(RUN)

phone: $(STAMP)  ## a phone to try commands on, without a phone: a real adbd, until Ctrl-C (ARCH=arm64 for an emulated one)
	@$(BIN)/python -m tests.phone --arch $(ARCH)

test: $(STAMP) system  ## all tests, with a real browser
	$(BIN)/python -m pytest

check: $(STAMP)  ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

setup: $(STAMP)  ## the virtual environment alone

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

system:  ## Debian packages that the tests use: a browser, adb, qemu, PostgreSQL
	@.ci/system-packages

clean:  ## remove the virtual environment and the demo's results
	rm -rf $(VENV) runs

# Everything here needs Python >= 3.11 and make, nothing else. `make demo` and `make test` create .venv when there is none.
PYTHON ?= python3
BIN := .venv/bin
DEMO_STAMP := .venv/.installed-demo
DEV_STAMP := .venv/.installed-dev
# How many processes share the test suite; each imports torch anew, so that more than there are cores cost more than they bring.
WORKERS ?= 2

.PHONY: help demo test test-web lint soak clean

help:
	@echo "make demo    install into .venv, then cache, train, evaluate, export and report on generated scenes"
	@echo "make test    install into .venv, then ruff, mypy and the test suite in two processes (WORKERS=N for N)"
	@echo "make test-web  the exported web page in headless Chromium; installs what that needs (playwright, Debian's chromium, onnxruntime-web from npm)"
	@echo "make soak    the long tests: every kill, every resume"
	@echo "make lint    ruff and mypy alone"
	@echo "make clean   remove .venv and everything that tools leave behind; runs/, caches/ and scenes/ stay"

demo: $(DEMO_STAMP)
	$(BIN)/distill demo

# A file's tests stay together: they share what was trained or exported for them. Byte code is kept, whatever the environment says:
# without it the processes of the tests, and those that tests start, compile everything anew.
test: lint
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Playwright drives the system's browser: it downloads none of its own.
test-web: $(DEV_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[web-test]'
	@command -v chromium || command -v chromium-browser || command -v google-chrome || apt-get install --yes --no-install-recommends chromium || { \
		echo "make: no Chromium was found, and apt-get cannot install it; install chromium or google-chrome and run this again" >&2; exit 2; }
	GAZE_ORT_WEB=$$($(BIN)/python -m distill.web_runtime) && export GAZE_ORT_WEB && $(BIN)/python -m pytest tests/web

soak: $(DEV_STAMP)
	$(BIN)/python -m pytest -m soak

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find schedules teachers students distill tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "make: '$(PYTHON)' is missing or older than Python 3.11; name one that is not: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv .venv || { \
		echo "make: no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf .venv; exit 2; }

# pyproject.toml alone decides what is installed: the packages are installed in place, so code that changes needs nothing. It is
# an order-only prerequisite that the environment exists, as installing touches it.
$(DEMO_STAMP): pyproject.toml | $(BIN)/python
	@echo "make: installing into .venv; torch is some gigabytes, so the first time takes minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[export,report]'
	@touch $@

$(DEV_STAMP): pyproject.toml | $(BIN)/python
	@echo "make: installing into .venv; torch is some gigabytes, so the first time takes minutes"
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(DEMO_STAMP)

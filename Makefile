VENV := .venv
PYTHON := $(VENV)/bin/python
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
.DEFAULT_GOAL := help

.PHONY: help run test test-demo test-slow test-all lint bench chromium

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/bin/python:
	@python3 -c 'import ensurepip' 2>/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -qq -y python3-venv; }
	python3 -m venv $(VENV)

$(VENV)/run: requirements.txt pyproject.toml $(VENV)/bin/python
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/run
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	touch $@

chromium:
	@command -v chromium >/dev/null || { $(SUDO) apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core fonts-wqy-zenhei >/dev/null; }

run: $(VENV)/run ## set up, build the demo checkpoint, start the app
	$(PYTHON) -m subllm.demo
	$(PYTHON) -m streamlit run app/main.py

test: $(VENV)/dev chromium ## set up what tests need, and run them
	$(PYTHON) -m pytest
	@echo "Screenshots of the journeys: build/screenshots"

test-demo: $(VENV)/dev ## tests that need the base of the demo checkpoint (93 MB)
	$(PYTHON) -m pytest -m demo

test-slow: $(VENV)/dev chromium ## several people at once in browsers of their own, some minutes
	$(PYTHON) -m pytest -m slow

test-all: test test-demo test-slow ## all tests

lint: $(VENV)/dev ## formatting, lint rules and types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	@if [ -d node_modules ]; then npm run --silent lint; else echo "JavaScript is not linted; npm install sets that up"; fi

bench: $(VENV)/dev chromium ## time, memory and the page in a browser; writes assets/benchmarks
	$(PYTHON) -m app.command efficiency --overheads --out assets/benchmarks
	$(PYTHON) -m app.command efficiency --dtype bfloat16 --lengths 2048 --out assets/benchmarks
	$(PYTHON) -m app.command training-step --config assets/training/small.json --out assets/benchmarks
	$(PYTHON) -m tests.benchmarks.browser --out assets/benchmarks
	$(PYTHON) -m tests.benchmarks.debug --out assets/benchmarks

VENV := .venv
PYTHON := $(VENV)/bin/python
.DEFAULT_GOAL := help

.PHONY: help test lint

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/installed: requirements.txt requirements-dev.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --requirement requirements-dev.txt
	touch $@

test: $(VENV)/installed ## set up what tests need, and run them
	$(PYTHON) -m pytest

lint: $(VENV)/installed ## formatting, lint rules and types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

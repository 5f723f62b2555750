VENV := .venv
PYTHON := $(VENV)/bin/python
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
.DEFAULT_GOAL := help

.PHONY: help run test test-demo test-slow test-soak test-all lint gallery bench chromium gpu-bundle gpu gpu-trainings gpu-dry
BUNDLE := build/gpu-bundle
GPU_OUT := build/gpu
OFFLINE := --no-index --find-links $(BUNDLE)/wheels --quiet --disable-pip-version-check

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

node_modules: package.json # for developers: axe-core for the tests, eslint for lint; without npm, both leave JavaScript out
	@if command -v npm >/dev/null; then npm install --silent --no-audit --no-fund --no-package-lock --ignore-scripts && touch $@; \
	else echo "There is no npm: the tests of accessibility are skipped, and JavaScript is not linted"; fi

run: $(VENV)/run ## set up, build the demo checkpoint, start the app
	$(PYTHON) -m subllm.demo
	$(PYTHON) -m streamlit run app/main.py

test: $(VENV)/dev chromium node_modules ## set up what tests need, and run them
	$(PYTHON) -m pytest --numprocesses 2 --dist loadfile
	@echo "Screenshots of the journeys: build/screenshots"

test-demo: $(VENV)/dev chromium ## tests that need the base of the demo checkpoint (93 MB)
	$(PYTHON) -m pytest -m demo --numprocesses 2 --dist loadfile

test-slow: $(VENV)/dev chromium ## several people at once, killed trainings, the built package, the measurement of the page; some minutes
	$(PYTHON) -m pytest -m slow --numprocesses 2 --dist loadfile

test-soak: $(VENV)/dev chromium ## large fuzzers, many kills, visitors for ten minutes: half an hour
	$(PYTHON) -m pytest -m soak

test-all: test test-demo test-slow test-soak ## all tests

lint: $(VENV)/dev node_modules ## formatting, lint rules and types
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	@if [ -d node_modules ]; then npm run --silent lint; fi

gallery: $(VENV)/run ## reports of recorded runs, for any static server; APP=URL links to a live app
	$(PYTHON) -m app.gallery --out build/gallery $(if $(APP),--app $(APP))

bench: $(VENV)/dev chromium ## time, memory and the page in a browser; writes assets/benchmarks
	$(PYTHON) -m app.command efficiency --overheads --out assets/benchmarks
	$(PYTHON) -m app.command efficiency --dtype bfloat16 --lengths 2048 --out assets/benchmarks
	$(PYTHON) -m app.command training-step --config assets/training/small.json --out assets/benchmarks
	$(PYTHON) -m app.command routers --out assets/benchmarks
	$(PYTHON) -m tests.benchmarks.browser --out assets/benchmarks
	$(PYTHON) -m tests.benchmarks.debug --out assets/benchmarks
	$(PYTHON) -m tests.benchmarks.corpus --out assets/benchmarks

gpu-bundle: $(VENV)/dev ## download what make gpu needs without a network; GPU_PYTHON=3.12 TORCH=torch==2.13.0 INDEX=URL
	$(PYTHON) -m tests.gpu.bundle --out $(BUNDLE) $(if $(GPU_PYTHON),--python $(GPU_PYTHON)) \
	  $(if $(TORCH),--torch '$(TORCH)') $(if $(INDEX),--index '$(INDEX)')

$(VENV)/gpu:
	[ -x $(PYTHON) ] || python3 -m venv --without-pip $(VENV)
	$(PYTHON) $$(echo $(BUNDLE)/wheels/pip-*.whl)/pip install $(OFFLINE) -r $(BUNDLE)/requirements.txt -c $(BUNDLE)/constraints.txt
	touch $@

gpu: $(VENV)/gpu ## check and measure on one NVIDIA GPU, without a network: 25 minutes, resumed by the same command
	$(PYTHON) -m tests.gpu --device cuda --bundle $(BUNDLE) --out $(GPU_OUT)

gpu-trainings: $(VENV)/gpu ## both demos trained on, and the family of small models, on one NVIDIA GPU: 35 minutes, resumed likewise
	$(PYTHON) -m tests.gpu --device cuda --bundle $(BUNDLE) --out $(GPU_OUT)-trainings --minutes 37 --only deep-conversion demo-conversion family

gpu-dry: $(VENV)/dev ## the same script on the CPU at tiny sizes
	$(PYTHON) -m tests.gpu --device cpu --dry --out $(GPU_OUT)-dry

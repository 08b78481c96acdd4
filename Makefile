# `make` lists the targets. Each sets up what it needs: a virtual environment in .venv with the
# exact versions of constraints.txt, installed again when pyproject.toml or constraints.txt change.

VENV := .venv
BIN := $(VENV)/bin

# The first Python that is new enough, else whichever there is (and then the check below speaks).
PYTHON ?= $(or $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		&& echo $$python && break; done),python3)

# Where torch comes from. The default has the CPU build; PyPI's build for Linux brings gigabytes
# of CUDA libraries with it. For a GPU: make serve TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130
# Only torch is taken from there. pip's own configuration still counts, so that a machine that
# cannot reach the index may offer the wheel through its find-links or extra-index-url.
TORCH_ORIGIN := $(origin TORCH_INDEX_URL)
TORCH_INDEX_URL ?= https://download.pytorch.org/whl/cpu

PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve serve-ray test check audit fix bench chaos soak fuzz train clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: PYTHON, TORCH_INDEX_URL, ARGS (more arguments for the command), PRESET (train)."

serve: $(VENV)/serve.stamp ## serve the models of checkpoints/ on http://127.0.0.1:8000
	$(BIN)/gatehouse serve $(ARGS)

# Ray's processes find deploy/ray by the path, and the proxies' answers by the second variable.
serve-ray: $(VENV)/ray.stamp ## the same in replicas on Ray, one of them at first
	PYTHONPATH="$(CURDIR)" RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deploy.ray.proxy.middlewares \
		$(BIN)/serve run deploy/ray/serve_config.yaml $(ARGS)

# A file's tests stay together, for many share a server; more processes than four would only crowd
# the memory with those. The last -n counts: ARGS="-n 0 --pdb" has one process again.
test: $(VENV)/dev.stamp ## run the tests
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(ARGS)

check: $(VENV)/dev.stamp ## lint, formatting, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo

# Under another name, for make --dry-run would run the line that names MAKE itself.
AGAIN := $(MAKE)

# Asked first, since without an answer there is nothing to check, nor to install for it.
ADVISORIES := https://pypi.org/pypi/pip/json
# With the certificates that this machine trusts, as the question before: a company may have its own.
TRUSTED := import ssl; print(ssl.get_default_verify_paths().cafile or "")

audit: | $(BIN)/python ## look for known vulnerabilities in the pinned packages
	@if $(BIN)/python -c 'import urllib.request as r; r.urlopen("$(ADVISORIES)", timeout=10)' 2>/dev/null; then \
		$(AGAIN) --no-print-directory $(VENV)/audit.stamp && \
		REQUESTS_CA_BUNDLE="$${REQUESTS_CA_BUNDLE:-$$($(BIN)/python -c '$(TRUSTED)')}" \
			$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip $(ARGS); \
	else \
		echo "Not audited: the advisories at $(ADVISORIES) cannot be reached from here."; \
	fi

fix: $(VENV)/dev.stamp ## mend what ruff can mend, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/bench.stamp ## run a benchmark: make bench ARGS=serving
	$(BIN)/python -m benchmarks $(ARGS)

chaos: $(VENV)/dev.stamp ## break things under load, then ask for ten times what the service can do
	$(BIN)/python -m pytest -m chaos
	$(BIN)/python -m benchmarks overload $(ARGS)

soak: $(VENV)/dev.stamp ## 200,000 mixed requests: nothing grows, the books balance
	$(BIN)/python -m benchmarks soak $(ARGS)

fuzz: $(VENV)/dev.stamp ## hostile requests, many times as many as in the tests
	$(BIN)/python -m pytest -m fuzz --hypothesis-profile fuzz --examples 500 --timeout 0 $(ARGS)

train: $(VENV)/train.stamp ## train a model: make train PRESET=name
ifneq ($(strip $(PRESET)$(ARGS)),)
	$(BIN)/gatehouse train $(PRESET) $(ARGS)
else
	@echo "Give your own text, as in make train ARGS='--text novel.txt', or name a preset:" >&2
	@echo "make train PRESET=name, with one of:" >&2
	@echo "$(sort $(filter-out prose translation,$(basename $(notdir $(wildcard training/presets/*.toml)))))" >&2
	@exit 2
endif

clean: ## remove the environment and every cache, and nothing that was trained
	rm -rf $(VENV) *.egg-info build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---------------------------------------------------------------- the environment

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Gatehouse needs Python 3.11 or newer, and $(PYTHON) is" \
			"$$($(PYTHON) --version 2>/dev/null || echo 'not there'):" \
			"install one and name it, as in: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
		exit 1; }
	@# Half an environment (Debian without python3-venv) would fail in stranger ways the next time.
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# An index that was asked for by name, and is not the one that torch came from, replaces torch.
ifneq ($(TORCH_ORIGIN),undefined)
ifneq ($(TORCH_INDEX_URL),$(shell cat $(VENV)/torch.stamp 2>/dev/null))
.PHONY: $(VENV)/torch.stamp
TORCH_REPLACE := --force-reinstall
endif
endif

$(VENV)/torch.stamp: constraints.txt | $(BIN)/python
	@echo "Installing torch from $(TORCH_INDEX_URL) ..."
	@$(PIP) --retries 2 --timeout 30 install --no-deps $(TORCH_REPLACE) \
		--index-url $(TORCH_INDEX_URL) "$$(grep '^torch==' constraints.txt)" || { \
		echo "torch could not be installed from $(TORCH_INDEX_URL) (pip says why above):" \
			"name an index that this machine reaches, as in: make $(MAKECMDGOALS)" \
			"TORCH_INDEX_URL=https://pypi.org/simple (on Linux gigabytes of CUDA come with that one)" >&2; \
		exit 1; }
	@echo "$(TORCH_INDEX_URL)" > $@

$(VENV)/train.stamp: EXTRAS := [train]
$(VENV)/dev.stamp: EXTRAS := [train,dev,ray]
$(VENV)/ray.stamp: EXTRAS := [ray]
$(VENV)/bench.stamp: EXTRAS := [train,bench]
$(VENV)/audit.stamp: EXTRAS := [audit]
$(VENV)/serve.stamp $(VENV)/ray.stamp $(VENV)/train.stamp $(VENV)/dev.stamp $(VENV)/bench.stamp $(VENV)/audit.stamp: pyproject.toml constraints.txt $(VENV)/torch.stamp
	@echo "Installing gatehouse$(EXTRAS) ..."
	@$(PIP) --quiet install --constraint constraints.txt --editable '.$(EXTRAS)'
	@touch $@

# The commands of the project; they need only Python 3.11+ and make. Settings: make lab PYTHON=python3.12
PYTHON ?= python3
# More arguments for pip, for example an index of CPU builds: PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# More arguments for JupyterLab, for example LAB_ARGS=--no-browser
LAB_ARGS ?=
# More arguments for pytest, for example PYTEST_ARGS="-k ppo"
PYTEST_ARGS ?=
# Which pairs `make notebooks` executes: all, unless named (ONLY=notebooks/12_ppo.py)
ONLY ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LESSONS := $(wildcard notebooks tutorials knowledge_base)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help venv lab demo test lint format notebooks bench chromium clean

help:  ## List the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "rlbook needs Python 3.11 or newer, named for example so: make lab PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

# One stamp per set of extras. PyTorch comes first and alone, so that its pin and PIP_ARGS decide which build it is.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing rlbook [$*] into $(VENV); the first time this takes a few minutes"
	@$(PIP) --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade >/dev/null
	@if [ -t 1 ]; then loud=; else loud=-qq; fi; $(PIP) install $$loud -c constraints.txt $(PIP_ARGS) torch
	@$(PIP) install -qq -c constraints.txt $(PIP_ARGS) -e '.$(if $(filter core,$*),,[$*])'
	@touch $@

venv: $(VENV)/.installed-test  ## Create .venv with everything a contributor needs

lab: $(VENV)/.installed-lab  ## Open the course in JupyterLab
	@$(BIN)/jupyter lab $(LAB_ARGS) notebooks/00_start_here.ipynb

demo: $(VENV)/.installed-core  ## Watch PPO learn CartPole in the terminal
	@$(BIN)/python -m rlbook train ppo CartPole-v1 --stop-at 475

test: lint chromium  ## Run everything CI runs
	@$(BIN)/python -m pytest -n 2 --dist loadfile \
		--nbval-lax --nbval-current-env --nbval-cell-timeout 180 --nbval-sanitize-with tests/sanitize.cfg \
		tests $(LESSONS) $(PYTEST_ARGS)

lint: venv  ## Check style, types, spelling and the import layers
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check || { echo "Put it right with: make format"; exit 1; }
	@$(BIN)/codespell
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/pyright

format: venv  ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

notebooks: venv  ## Execute and publish every notebook from its script (ONLY=... for some)
	@$(BIN)/python tools/notebooks.py build $(ONLY)

bench: $(VENV)/.installed-bench  ## Measure against TorchRL and Stable-Baselines3
	@$(BIN)/python -m benchmarks

# The browser test needs Chromium or Chrome; without one it is skipped.
chromium:
	@if ! $(PYTHON) tools/browser.py; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing Chromium for the browser test"; \
			apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
				chromium fonts-dejavu-core >/dev/null || echo "No Chromium could be installed: the browser test will be skipped"; \
		else \
			echo "The browser test will be skipped: install Chromium or Chrome to run it"; \
		fi; \
	fi

clean:  ## Remove .venv and every cache
	@rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

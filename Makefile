# `make book` and `make test` set up all they need; `make help` lists the rest.

VENV    ?= .venv
PYTHON  ?= python3
PROFILE ?= mini
bin     := $(VENV)/bin

# A target of make is one word.
$(if $(word 2,$(VENV)),$(error The environment's path '$(VENV)' holds blanks, which make cannot \
    have in a target: give VENV a path without))

# A relative VENV is this checkout's own and gets the editable package (the `abp` command). Another
# may serve several checkouts: it gets the locked packages alone and must not point at any of them.
own    := $(if $(filter /%,$(VENV)),,pyproject.toml)

# An environment is whole when it holds the stamp of what was to be installed.
stamp  := $(VENV)/.installed-$(shell cat requirements.lock $(own) | cksum | cut -d ' ' -f 1)

# Every command runs this checkout's code, whatever checkout an environment was made for.
export PYTHONPATH := $(CURDIR)

# Many containers forbid Python to keep what it compiles; each of some forty processes would then
# compile PyTorch's and diffusers' thousands of modules anew, twelve seconds each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help book test lint format notebooks setup lock clean

help:       ## this list
	@sed -n 's/^\([a-z]*\): .*## /  make \1	/p' Makefile

book: $(stamp)  ## run what changed and build book/_build/html (PROFILE=smoke: on random weights)
	$(bin)/python -m snakemake --profile workflow/profiles/local --config 'profile=$(PROFILE)'

test: lint  ## style, types, then the tests, side by side on up to four cores
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile \
	    --no-loadscope-reorder

lint: $(stamp)  ## style and types alone
	$(bin)/python -m ruff check
	$(bin)/python -m ruff format --check
	$(bin)/python -m mypy abplib recipes benchmarks

format: $(stamp)  ## put the code into the project's style
	$(bin)/python -m ruff check --fix
	$(bin)/python -m ruff format

notebooks: $(stamp)  ## write book/notebooks/*.ipynb again from book/chapters/*.md
	$(bin)/python -m abplib notebooks

setup: $(stamp)  ## the virtual environment alone

lock: $(stamp)  ## resolve pyproject.toml into requirements.lock, keeping the versions that still fit
	$(bin)/uv pip compile --quiet --universal --python-version 3.11 --extra dev \
	    --custom-compile-command 'make lock' --output-file requirements.lock pyproject.toml

clean:      ## remove what is built and measured; the environment and training checkpoints stay
	rm -rf book/_build results .snakemake build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find abplib recipes tests -name __pycache__ -prune -exec rm -rf {} +

# `.installing` stays behind when an installation dies: the next one starts from an empty environment.
$(stamp):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	    "abplib needs Python 3.11 or newer and '$(PYTHON)' is older or missing: name one with" \
	    "PYTHON=/path/to/python3.11." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo \
	    "'$(PYTHON)' cannot make virtual environments: install its venv module" \
	    "(Debian: apt install python3-venv)." >&2; exit 1; }
	@echo "Setting up $(VENV) from requirements.lock"
	@if [ -e $(VENV)/.installing ]; then $(PYTHON) -m venv --clear $(VENV); \
	elif ! $(bin)/python -m pip --version >/dev/null 2>&1; then $(PYTHON) -m venv $(VENV); fi
	@rm -f $(VENV)/.installed-*
	@touch $(VENV)/.installing
	$(bin)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock uv
	$(bin)/uv pip install --python $(bin)/python -r requirements.lock
ifdef own
	$(bin)/uv pip install --python $(bin)/python --quiet --no-deps --no-build-isolation -e .
endif
	@mv $(VENV)/.installing $@

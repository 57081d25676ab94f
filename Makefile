# `make demo` and `make test` set everything up by themselves: they need Python 3.11+ and a
# package index. Another Python: make PYTHON=python3.12 …

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Prefect calls no outside hosts, and its temporary server may take its time on a slow machine.
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS := 180
# sam2 is used without its CUDA extension.
export SAM2_BUILD_CUDA := 0

.PHONY: demo test lint format kill install clean

demo: .venv/installed
	$(BIN)/python -m demo --out out/demo

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Kills a run 50 times and compares what it made; takes some ten minutes.
kill: .venv/installed
	$(BIN)/python -m benchmarks.kill

install: .venv/installed

clean:
	rm -rf .venv out

# torch first: sam2 names it as a build requirement, and in an isolated build environment pip would
# download gigabytes of CUDA packages only to build a pure Python package.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "masklet needs Python 3.11 or later; try make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip setuptools wheel
	$(PIP) torch numpy
	$(PIP) --no-build-isolation sam2
	$(PIP) --no-build-isolation --editable '.[dev,train]'
# Without what it asks for: opencv-python would overwrite the headless one; the rest is there.
	$(PIP) --no-deps vos-benchmark
	touch $@

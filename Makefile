# `make demo` and `make test` set everything up by themselves: they need Python 3.11+ and a
# package index. Another Python: make PYTHON=python3.12 …

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Prefect calls no outside hosts; its other settings stand in prefect.toml.
export DO_NOT_TRACK := 1
# sam2 is used without its CUDA extension.
export SAM2_BUILD_CUDA := 0

.PHONY: demo test lint format kill server worker deploy deploy-check label-scale ui-check fuzz train install clean

demo: .venv/installed
	$(BIN)/python -m demo --out out/demo

# A process waits passively for its threads, as two processes share the cores.
test: .venv/installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile

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

# Probes 10,000 damaged media files; takes some twenty minutes.
fuzz: .venv/installed
	$(BIN)/python -m benchmarks.fuzz_media

# A local Prefect: `make server`, `make deploy` once, `make worker`; docs/prefect.md. Its data is in
# .prefect/. A worker of another server: make worker PREFECT_API_URL=http://host:4200/api
PREFECT := PREFECT_HOME=$(CURDIR)/.prefect $(BIN)/prefect --no-prompt
worker deploy: export PREFECT_API_URL ?= http://127.0.0.1:4200/api

server: .venv/installed
	$(PREFECT) server start

deploy: .venv/installed
	@$(PREFECT) work-pool inspect masklet >/dev/null 2>&1 \
		|| $(PREFECT) work-pool create masklet --type process
	@$(PREFECT) automation inspect masklet-crashed-runs >/dev/null 2>&1 \
		|| $(PREFECT) automation create --from-file automations.yaml
	$(PREFECT) deploy --all

worker: .venv/installed
	$(PREFECT) worker start --pool masklet --type process --limit 1

# The stack above on a port of its own, used and broken as people do; takes some minutes.
deploy-check: .venv/installed
	$(BIN)/python -m benchmarks.deploy_check

# The form and the pages of a run in a browser, with screenshots in out/ui. Chromium comes with
# Debian, or by `playwright install chromium`: make ui-check CHROMIUM=
CHROMIUM ?= $(shell command -v chromium)
ui-check: .venv/installed
	$(PIP) playwright
	$(BIN)/python -m benchmarks.ui_check $(if $(CHROMIUM),--browser $(CHROMIUM))

# 200 clips on two workers, Postgres and S3, one worker killed; takes some ten minutes.
label-scale: .venv/installed
	$(BIN)/python -m benchmarks.label_scale

# A nano from random weights, by training/one_hour.yaml or RECIPE=recipe, which takes a day; stopped
# and started again, it goes on. training/README.md
RECIPE ?= one_hour
TRAINED := training/runs/$(RECIPE)
train: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1
train: export TQDM_DISABLE := 1
train: .venv/installed training/runs/bank/names.json training/runs/bank/films_train.npy
	$(BIN)/python -m training.train --recipe training/$(RECIPE).yaml
	$(BIN)/python -m training.export --checkpoints $(TRAINED)/last.pt --presence 1.4 --out $(TRAINED)/nano.safetensors
	$(BIN)/python -m training.curves --log $(TRAINED)/log.jsonl --out $(TRAINED)/curves.png
	$(BIN)/python -m training.evaluate --weights $(TRAINED)/nano.safetensors --clips 36

# Fetches Debian packages; elsewhere: python -m training.assets FOLDER…
training/runs/bank/names.json: .venv/installed
	$(BIN)/python -m training.assets --debian training/runs/pictures
training/runs/bank/films_train.npy: .venv/installed
	$(BIN)/python -m training.films --debian training/runs/pictures

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

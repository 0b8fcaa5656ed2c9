# `make quickstart`, `make demo`, `make test`: each sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
# Two processes share the test files: one alone keeps two cores busy two thirds of the time.
SHARED := --numprocesses 2 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: quickstart demo test test-full lint format bench bench-gpu clean

quickstart: STARTED := $(shell date +%s)
quickstart: .venv/ready
	$(BIN)/python -m benchmarks.quickstart --started $(STARTED)

demo: .venv/ready-for-demo
	@test -f runs/quickstart/finetune/evaluation.json || { \
	  echo "no trained model yet: the quickstart makes one (7 minutes on 2 cores) ..."; \
	  $(MAKE) quickstart; }
	@test -d data/synthetic/pictures && \
	  test -z "$$(find data/synthetic -maxdepth 1 -type f -newer data/synthetic/pictures)" || { \
	  rm -rf data/synthetic/pictures; $(BIN)/python -m data_prep.pictures \
	  --records data/synthetic --split test --out data/synthetic/pictures; }
	@# The index of a model that was trained anew since is of no use.
	$(BIN)/python -m unipt_jax.main --config=configs/search.py:quickstart \
	  --workdir=runs/quickstart/index --config.serve=True --config.overwrite=$$( \
	  test runs/quickstart/index/index.json -nt runs/quickstart/finetune/evaluation.json \
	  && echo False || echo True)

test: .venv/ready-for-tests lint
	$(BIN)/python -m pytest $(SHARED)

test-full: .venv/ready-for-tests lint
	$(BIN)/python -m pytest $(SHARED) -m "full_size or not full_size"

lint: .venv/ready-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/shellcheck launch/*.sh

format: .venv/ready-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/ready-for-tests
	@test -d data/synthetic/captions || $(MAKE) quickstart  # startup trains on it
	$(BIN)/python -m benchmarks.train_step --dtype both --save
	$(BIN)/python -m benchmarks.end_to_end --save
	$(BIN)/python -m benchmarks.contrastive --save
	$(BIN)/python -m benchmarks.accumulation --save
	$(BIN)/python -m benchmarks.startup --save
	$(BIN)/python -m benchmarks.caption --save
	$(BIN)/python -m benchmarks.rank --repeats 1 --save
	$(BIN)/python -m benchmarks.search --save
	$(BIN)/python -m benchmarks.input --save
	$(BIN)/python -m benchmarks.table --write

# Not rank and caption: their references compute on CPUs.
bench-gpu: .venv/ready-for-gpu
	$(BIN)/python -m benchmarks.train_step --dtype bfloat16 --batch 512 --save
	$(BIN)/python -m benchmarks.end_to_end --dtype bfloat16 --batch 512 --save
	$(BIN)/python -m benchmarks.contrastive --save
	$(BIN)/python -m benchmarks.accumulation --save
	$(BIN)/python -m benchmarks.input --save
	$(BIN)/python -m benchmarks.table --write

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than Python 3.11: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/ready: .venv/bin/python setup.cfg pyproject.toml
	@echo "installing what unipt_jax needs (about a minute) ..."
	$(PIP) --editable .
	@touch $@

.venv/ready-for-tests: .venv/ready tests/assets.txt constraints.txt
	@echo "installing what the tests need, PyTorch and Gradio among it (two minutes) ..."
	$(PIP) --constraint constraints.txt --editable '.[test,torch,beam,demo,faiss]'
	$(PIP) --no-deps --requirement tests/assets.txt
	@touch $@

.venv/ready-for-demo: .venv/ready
	@echo "installing Gradio (half a minute) ..."
	$(PIP) --editable '.[demo]'
	@touch $@

.venv/ready-for-gpu: .venv/ready
	@echo "installing CUDA for JAX and PyTorch (several GB) ..."
	$(PIP) --editable '.[cuda,torch]'
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info data/synthetic runs/quickstart

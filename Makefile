# Every target is a line or two; the logic lives in the programs that it calls.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test check images cluster-up cluster-down generate bench gpu-check train-tiny-model clean

help: ## list the targets
	@sed -n 's/^\([a-z%-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(READY) ## make .venv with everything the other targets need (the first time: some minutes)

$(READY): pyproject.toml images/gguf/constraints.txt images/gguf/wheel.py images/gguf/wheel_cpu.py
	@echo "setup: Python environment in $(VENV)" && $(PYTHON) -m venv $(VENV) && $(BIN)/pip install -q uv==0.13.9 wheel==0.48.0
	@echo "setup: llama.cpp wheel, built once and cached" && $(BIN)/python images/gguf/wheel.py >$(VENV)/llama-wheel
	@echo "setup: packages (torch alone is 4.5 GB the first time)"
	@$(BIN)/uv pip install --compile-bytecode -p $(BIN)/python -c images/gguf/constraints.txt -e '.[gguf,benchmarks,operator,dev]' "$$(cat $(VENV)/llama-wheel)"
	@touch $@

demo: $(READY) ## quantize the tiny model that the repository holds by examples/gguf.yaml
	$(BIN)/kubequant run examples/gguf.yaml

check: $(READY) ## ruff, mypy and the layers
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy && $(BIN)/lint-imports

test: check ## the checks and every test
	$(BIN)/python -m tests.streams

cluster-up: $(READY) ## start a Kubernetes cluster and an S3 server on this machine (root; the first time: 15 minutes)
	@$(BIN)/python -m tests.testbed up

cluster-down: $(READY) ## stop what cluster-up started and leave nothing behind
	@$(BIN)/python -m tests.testbed down

images: ## build the images with docker, podman or buildah (one of them: make image-<name>)
	$(PYTHON) images/build.py all

image-%:
	$(PYTHON) images/build.py $*

env-%: $(READY) ## env-<name>: make the Python environment of images/<name> (or operator) and print its interpreter
	@$(BIN)/python images/environment.py $*

generate: $(READY) ## write again what is generated: the CRD, the JSON schemas, what deploy/ installs, tables and pictures in docs
	$(BIN)/python -m kubequant.api.crd
	$(BIN)/python -m deploy.generate
	$(BIN)/python docs/choosing.py && $(BIN)/python docs/generate.py

bench: $(READY) ## measure the figures of docs/benchmarks.md, each against a peer in the same run
	$(BIN)/python -m tests.bench

gpu-check: ## quantize, serve and measure on this machine's GPU with what is installed; writes docs/gpu-results.md
	PYTHONPATH=operator:images/worker:. $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tests.gpu $(GPU_CHECK)

train-tiny-model: $(READY) ## train examples/models/tiny-llama again (30 minutes on two cores)
	$(BIN)/python examples/models/train_tiny_llama.py

clean: ## remove what the other targets made in this folder (the cache outside of it stays)
	rm -rf $(VENV) out build dist images/gguf/wheels .mypy_cache .pytest_cache .ruff_cache .hypothesis

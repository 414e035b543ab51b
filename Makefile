# Every target is a thin call of cxr. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
CXR    := $(VENV)/bin/cxr

SOURCE ?= phantom
ROOT   ?= demo/phantom
SIZE   ?= 64
DATA   ?= data/prepared
RUNS   ?= runs
SCALE  ?= gpu1
CONDITIONS ?= healthy,pneumonia,pleural_effusion
COUNT  ?= 1000
OVERLAY ?=
SCORES  ?= yes
EVALUATE_FLAGS ?=

# A stage of this configuration, into this folder of RUNS.
fit = $(CXR) fit --config configs/$(1).yaml --config configs/scale/$(SCALE).yaml \
      $(if $(OVERLAY),--config $(OVERLAY)/$(1).yaml) \
      --data.root $(DATA) --data.image_size $(SIZE) --trainer.default_root_dir $(RUNS)/$(2)

# With SCORES stages 2 and 4 are judged while they train, by the encoders of stage 3 that are there:
# the FID by the one that no loss has seen.
ENCODER  = $(wildcard $(RUNS)/moco/product)
HELD_OUT = $(wildcard $(RUNS)/moco_held_out/product)
JUDGES   = $(if $(SCORES),$(if $(ENCODER),--generation.encoder $(ENCODER) \
           --generation.extractor encoder --generation.weights $(or $(HELD_OUT),$(ENCODER))) \
           $(if $(HELD_OUT),--generation.encoder_held_out $(HELD_OUT)))

.DEFAULT_GOAL := help
.PHONY: help demo test lint type prepare describe vae ddpm moco moco-held-out finetune distill generate serve evaluate report pipeline benchmark benchmark-data benchmark-peers gpu-check clean

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(VENV)/installed  ## phantom data, four small stages on the CPU, generate, evaluate, report.html
	test -f demo/prepared/header.json || \
		$(CXR) prepare --source phantom --root demo/phantom --out demo/prepared --size 64 --patients 400
	WANDB_MODE=$${WANDB_MODE:-disabled} $(MAKE) pipeline DATA=demo/prepared RUNS=demo SIZE=64 SCALE=cpu OVERLAY=configs/demo COUNT=32 SCORES= \
		EVALUATE_FLAGS="--axes fidelity representation condition privacy --classifier_steps 200 --bootstrap 100"
	@echo "Open demo/report.html in a browser."

test: $(VENV)/installed-dev  ## make the environment and pass the tests
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 $(PYTEST_FLAGS)

lint: $(VENV)/installed-dev  ## ruff
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

type: $(VENV)/installed-dev  ## mypy, strict
	$(VENV)/bin/mypy

prepare: $(VENV)/installed  ## SOURCE=chexpert ROOT=... DATA=... SIZE=64: read a data set
	$(CXR) prepare --source $(SOURCE) --root $(ROOT) --out $(DATA) --size $(SIZE)

describe: $(VENV)/installed  ## DATA=...: what is in a prepared data set, with contact sheets
	$(CXR) prepare --describe $(DATA)

vae: $(VENV)/installed  ## stage 1: the autoencoder
	$(call fit,vae,vae) $(VAE_FLAGS)

ddpm: $(VENV)/installed  ## stage 2: the DDPM on top of it
	$(call fit,ddpm,ddpm) --model.init_args.autoencoder $(RUNS)/vae/product $(JUDGES) $(DDPM_FLAGS)

moco: $(VENV)/installed  ## stage 3: the representation
	$(call fit,moco,moco) $(MOCO_FLAGS)

moco-held-out: $(VENV)/installed  ## another encoder, of another seed, that judges stage 4 without being in its loss
	$(call fit,moco,moco_held_out) $(MOCO_FLAGS) --seed_everything 1

finetune: $(VENV)/installed  ## stage 4: the DDPM with the representation loss
	$(call fit,finetune,finetune) --model.init_args.generator $(RUNS)/ddpm/product \
		--model.init_args.encoder $(RUNS)/moco/product \
		$(or $(strip $(JUDGES)),--generation.encoder $(RUNS)/moco/product) $(FINETUNE_FLAGS)

distill: $(VENV)/installed  ## optional, not in pipeline: the fine-tuned generator, made fast (1 to 4 steps)
	$(call fit,distill,distill) --model.init_args.generator $(RUNS)/finetune/product $(DISTILL_FLAGS)

generate: $(VENV)/installed  ## the synthetic data set
	$(CXR) generate --model $(RUNS)/finetune/product \
		--out $(RUNS)/synthetic --condition $(CONDITIONS) --count $(COUNT) $(GENERATE_FLAGS)

serve: $(VENV)/installed  ## the fine-tuned generator over HTTP, on this machine: SERVE_FLAGS="--port 8080"
	$(VENV)/bin/python -m pip install --quiet --editable '.[serve]'
	$(CXR) serve --model $(RUNS)/finetune/product $(SERVE_FLAGS)

evaluate: $(VENV)/installed  ## fidelity, representation, condition, utility, privacy
	$(CXR) evaluate --real $(DATA) --synthetic $(RUNS)/synthetic --out $(RUNS)/evaluation \
		--generator $(RUNS)/finetune/product --encoder $(RUNS)/moco/product \
		$(if $(HELD_OUT),--encoder_held_out $(HELD_OUT) --extractor encoder=$(HELD_OUT)) $(EVALUATE_FLAGS)

report: $(VENV)/installed  ## one HTML page, Markdown and JSON
	$(CXR) report --evaluation $(RUNS)/evaluation --out $(RUNS)/report.html

pipeline:  ## all of it: DATA=prepared RUNS=folder SIZE=64 SCALE=gpu8; SCORES= is quicker and judges less
	$(MAKE) vae
	$(MAKE) moco
	$(if $(SCORES),$(MAKE) moco-held-out)
	$(MAKE) ddpm
	$(MAKE) finetune
	$(MAKE) generate
	$(MAKE) evaluate
	$(MAKE) report

benchmark: $(VENV)/installed  ## speed of stage 2's training step, as JSON
	$(CXR) benchmark --config configs/ddpm.yaml --config configs/scale/$(SCALE).yaml \
		--data.root $(DATA) --data.image_size $(SIZE) \
		--model.init_args.autoencoder $(RUNS)/vae/product $(DDPM_FLAGS)

benchmark-data: $(VENV)/installed  ## speed of the loader, as JSON: DATA=... BENCHMARK_FLAGS="--files ..."
	$(CXR) benchmark --data $(DATA) $(BENCHMARK_FLAGS)

benchmark-peers: $(VENV)/installed-dev  ## speed of training beside diffusers and MONAI, as JSON: BENCHMARK_FLAGS="--size 64"
	$(CXR) benchmark --peers $(BENCHMARK_FLAGS)

gpu-check: $(VENV)/installed-dev  ## what needs a GPU: its tests, then the speed of stage 2, rung by rung
	$(VENV)/bin/python -m pytest -m gpu $(PYTEST_FLAGS)
	test -f data/gpu-check/header.json || $(CXR) prepare --source phantom \
		--root data/gpu-check-phantom --out data/gpu-check --size 64 --patients 400
	$(CXR) benchmark --ladder --config configs/ddpm.yaml --config configs/scale/gpu1.yaml \
		--data.root data/gpu-check --model.init_args.form uncond

clean:  ## remove the demo, caches and the environment; never your runs
	rm -rf demo $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $(VENV)/installed $@

# The one way to set up, check and run Boxless. `make` alone lists the targets.
#
# Options of the stage targets:
#   RECIPE=toy             a built-in recipe's name, or a YAML file
#   RUN=DIR                the run folder (default: runs/ and the recipe's name)
#   LAUNCHER=local|torchrun|deepspeed|slurm  NODES=N  PROCS=P (ranks on each node)
#   SET="a.b=c d.e=f"      values laid over the recipe

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Python keeps what it has compiled, also where the environment forbids it: installed packages come
# uncompiled, and a start that compiles PyTorch again takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

STAGES := ingest teach distill pretrain finetune evaluate
RECIPE ?= toy
BOXLESS := .venv/bin/boxless
CODE := boxless pipeline stages sharding launch $(wildcard benchmarks) tests $(wildcard docs/generate)

settings = $(if $(RUN),--run $(RUN)) $(foreach setting,$(SET),--set $(setting))
run_folder = $(or $(RUN),runs/$(notdir $(basename $(RECIPE))))
launching = $(if $(LAUNCHER),--launcher $(LAUNCHER)) $(if $(NODES),--nodes $(NODES)) \
	$(if $(PROCS),--procs-per-node $(PROCS))

.PHONY: help demo demo-tasks test test-fast check lint types imports run report status attach cancel logs \
	slurm-test multinode-test multinode-training distill-array ranks-test goodput ledger ablation doctor clean $(STAGES) \
	drill two-writers elastic positions damages scale bench detector parts extraction counts fuzz dictionary step inference \
	retrieval curves docs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@awk '/^# Options/, /^$$/' $(firstword $(MAKEFILE_LIST)) | sed 's/^# \{0,1\}//'

demo: .venv/ready ## all stages on generated pictures, in minutes: runs/toy/report/index.html
	$(BOXLESS) run toy --run runs/toy
	@echo "Done. Open in a browser: file://$(CURDIR)/runs/toy/report/index.html"

demo-tasks: .venv/ready ## every downstream task on generated pictures, compared with no pretraining
	$(BOXLESS) run toy --to finetune --run runs/toy
	@echo "Done. Open in a browser: file://$(CURDIR)/runs/toy/report/index.html"

test: .venv/ready ## all tests
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist worksteal

test-fast: .venv/ready ## the tests that take under a second or so each, for daily work
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 --dist worksteal -m "not slow"

check: lint types imports ## lint, types and the import rule

lint: .venv/ready ## ruff: lint and format
	.venv/bin/ruff check $(CODE) && .venv/bin/ruff format --check $(CODE)

types: .venv/ready ## mypy
	.venv/bin/python -m mypy

imports: .venv/ready ## who may import whom
	.venv/bin/python -m pytest -q tests/test_imports.py

ingest: ## raw corpora -> image shards
teach: ## image shards with boxes -> a Faster R-CNN teacher
distill: ## image shards -> object shards, labelled by the teacher
pretrain: ## object shards -> student
finetune: ## student + task data -> task scores
evaluate: ## student on held-out pictures -> scores, each with its chance level
run: ## all stages in order, each skipped when complete, and the report
$(STAGES) run: .venv/ready
	$(BOXLESS) $@ $(RECIPE) $(settings) $(launching)

ablation: RECIPE := kdvlp-toy
ablation: .venv/ready ## plain, SOHO, KD-VLP and both: the same steps, three seeds
	$(BOXLESS) ablation $(RECIPE) $(settings)

status: .venv/ready ## how far each stage of RUN is
	$(BOXLESS) status $(run_folder)

attach: .venv/ready ## show what the Slurm job of RUN prints; Ctrl-C leaves the job
	$(BOXLESS) attach $(run_folder)

cancel: .venv/ready ## end the Slurm jobs of RUN; pretraining saves first
	$(BOXLESS) cancel $(run_folder)

logs: .venv/ready ## the log of rank RANK (default 0) of the stage of RUN that wrote last
	$(BOXLESS) logs $(run_folder) --rank $(or $(RANK),0)

slurm-test: .venv/ready ## launchers under a real Slurm on this machine (root, slurm-wlm, munge)
	.venv/bin/python -m pytest -q -rs tests/launch/test_slurm.py tests/launch/test_slurm_commands.py

multinode-test: .venv/ready ## launchers on three nodes in namespaces (root, Slurm, iproute2, sshd)
	MULTINODE_TESTS=1 .venv/bin/python -m pytest -q -rs tests/launch/test_three_nodes.py

ranks-test: .venv/ready ## each task finetuned under torchrun, killed on 2 or 3 ranks, continued on 3 or 2
	RANKS_TESTS=1 .venv/bin/python -m pytest -q -rs tests/stages/transfer/test_finetune_ranks.py

goodput: .venv/ready ## a fault every two minutes on three nodes for half an hour: what was useful?
	.venv/bin/python -m benchmarks.launch.goodput --minutes 30

multinode-training: .venv/ready ## real pretraining on three nodes with faults: is every sample seen once?
	.venv/bin/python -m benchmarks.launch.multinode_training

distill-array: .venv/ready ## distill as a Slurm array, tasks killed, requeued and added: is every byte the same?
	.venv/bin/python -m benchmarks.launch.distill_array

ledger: .venv/ready ## 10,000 shards, 16 workers at a time, 1,000 killed at random: claims a second, is one lost?
	.venv/bin/python -m benchmarks.sharding.ledger

report: .venv/ready ## write the page of RUN again
	$(BOXLESS) report $(run_folder)

doctor: .venv/ready ## check the environment: what is missing, with fixes
	$(BOXLESS) doctor

drill: .venv/ready ## 100 runs of 1 to 8 workers, killed -9 at random: is every byte the same?
	.venv/bin/python -m benchmarks.sharding.kill_drill --runs 100

two-writers: .venv/ready ## 1,000 rounds of two writers of one shard with clocks minutes apart: 0 wrong?
	.venv/bin/python -m benchmarks.sharding.two_writers --rounds 1000

elastic: .venv/ready ## real training killed on 2 ranks, on 1, ended on 3: is every sample seen once?
	.venv/bin/python -m benchmarks.training.elastic_training

positions: .venv/ready ## simulated worlds of 24, 16, 7 and 48 ranks: is every sample seen once?
	.venv/bin/python -m benchmarks.sharding.positions

damages: .venv/ready ## damaged shards: what stock webdataset does, what ours does
	.venv/bin/python -m benchmarks.sharding.damages

scale: .venv/ready ## start, seek, memory and cost a sample, up to a million shards (4 GB of disk)
	.venv/bin/python -m benchmarks.sharding.scale

bench: .venv/ready ## shards written and read, beside stock webdataset, Energon and mosaic streaming
	.venv/bin/python -m benchmarks.sharding.shards

detector: .venv/ready ## a full-size teacher, beside detectron2 where that is installed
	.venv/bin/python -m benchmarks.detector.teacher

parts: .venv/ready ## RoIAlign, NMS and the choice of boxes, compared with plain implementations
	.venv/bin/python -m benchmarks.detector.teacher_parts

extraction: .venv/ready ## how busy distill keeps its device, beside one step after the other
	.venv/bin/python -m benchmarks.detector.extraction

counts: .venv/ready ## an extraction's operators, how often its host waits for a GPU, its mean batch
	.venv/bin/python -m benchmarks.detector.counts
	.venv/bin/python -m benchmarks.detector.planned_batches

dictionary: .venv/ready ## the visual dictionary as SOHO released it, and ours: dead codes, scores
	.venv/bin/python -m benchmarks.training.dictionary $(foreach setting,$(SET),--set $(setting))

step: .venv/ready ## time of a pretraining step, compared with the released SOHO's, part by part
	.venv/bin/python -m benchmarks.training.soho_step --parts

inference: .venv/ready ## one picture to a score: by a detector's regions, and end to end
	.venv/bin/python -m benchmarks.transfer.inference

retrieval: .venv/ready ## pairs a second of the retrieval matrix of RUN's student, beside the model on each pair
	.venv/bin/python -m benchmarks.transfer.retrieval_matrix --student $(run_folder)/student

curves: .venv/ready ## loss curves under ZeRO 0 to 3, bf16, accumulation and 1, 2, 4 ranks: the same?
	.venv/bin/python -m benchmarks.training.loss_curves

fuzz: .venv/ready ## fuzz the readers of untrusted files for ten minutes (pip install atheris first)
	.venv/bin/python -m tests.fuzz.fuzz_readers --seconds 60

docs: .venv/docs-ready ## build the documentation site: build/site/index.html
	.venv/bin/python -m mkdocs build --quiet --strict

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .hypothesis
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

# Without its stamp a .venv was never finished, and is built anew. With it, only what changed in the
# lists of packages is installed. --no-compile: Python compiles what is imported, a small part.
.venv/ready: constraints.txt setup.cfg pyproject.toml
	@test -e $@ || rm -rf .venv
	@test -d .venv || { python=$$(.ci/find-python) && echo "Building .venv with $$python" && \
		"$$python" -m venv .venv; }
	.venv/bin/python -m pip install --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

# What builds the site is no part of .venv/ready: tests and runs do without it. It needs Python 3.11.
.venv/docs-ready: .venv/ready
	.venv/bin/python -m pip install --no-compile --constraint constraints.txt --editable '.[docs]'
	@touch $@

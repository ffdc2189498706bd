# make demo    set-up, then the main job: a tiny model learns from pictures by VPPO
# make test    set-up, then the tests (no torch)
# make proofs  what takes longer to show: trainings, notebooks, hundreds of prompts
# make parity  adds torch, then the comparisons with transformers
# make parity-sweep SEEDS=20 FIRST=1000   the same on other random models and pictures
# make aot     adds libtpu, then compiles the kernels for four TPUs, without a TPU
# make bench  what BENCHMARKS.md times on a CPU: rewards, sampling, pictures, agents, ...
# make bench-load  seconds and memory of loading a checkpoint, for BENCHMARKS.md
# make chaos KILLS=25 SEED=0   a run that is killed at random moments ends with the same bits
# make multiprocess  one training on 1, 2 and 4 processes; one is killed, all go on
# make test-new     tests of the kernels on the newest jax, where Python 3.12 is found
# make test-newest  all tests on it
# make test-hopper  the Hopper kernel's tests on the GPU of this machine (5 GB)
# make compile-mgpu the Hopper kernel compiled for an H200 that need not be there (5 GB)
# make lint    style and format
# make cases   the golden cases again, on other files: OBJECTIVES=a.json VERIFIERS=b.json
# make fuzz EXAMPLES=1000   every reward and parser on so many arbitrary inputs, counted
# make table   three seeds of every digits experiment, as printed in experiments/README.md
# make functions  FUNCTIONS.md, the index, from the docstrings
# make study   VPPO, its parts, controls and baselines over five seeds; continues

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/vppo_tiny_digits
OBJECTIVES ?= tests/golden/objectives_cases.json
VERIFIERS ?= tests/golden/verifiers_cases.json
EXAMPLES ?= 1000
SEEDS ?= 20
KILLS ?= 25
SEED ?= 0
FIRST ?= 1000
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
PYTEST := $(BIN)/python -m pytest
NEW := .venv-new
CUDA := .venv-cuda
# The newest jax needs Python 3.12: the first that runs, in PATH or among pyenv's.
PYENV := $(HOME)/.pyenv/versions/*/bin
NEW_PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 $(PYENV)/python3.1[2-9]; do \
	$$p -c 'import ensurepip, venv' >/dev/null 2>&1 && command -v $$p && break; done)
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
# It would say that torch is missing; it is not needed.
export TRANSFORMERS_VERBOSITY ?= error

.PHONY: demo test proofs bench parity parity-sweep chaos multiprocess cases bench-load lint table clean fuzz aot test-new test-newest test-hopper compile-mgpu study functions
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/python experiments/vppo_tiny_digits.py --out $(RUN)

test: $(VENV)/.test
	$(PYTEST) -n 2 --dist worksteal -m "not parity and not aot and not proof"

proofs: $(VENV)/.test
	$(PYTEST) -n 2 --dist worksteal -m proof

test-new:
	@if test -n "$(NEW_PYTHON)"; then $(MAKE) --no-print-directory $(NEW)/.ready && \
		JAX_PLATFORMS=cpu $(NEW)/bin/python -m pytest -n 2 -rs tests/kernels; \
	else echo "test-new skipped: no Python 3.12 or newer in PATH or pyenv's versions"; fi

test-newest: $(NEW)/.ready
	$(NEW)/bin/python -m pip --disable-pip-version-check install --quiet -e ".[test]"
	JAX_PLATFORMS=cpu $(NEW)/bin/python -m pytest -n 2 --dist worksteal \
		-m "not parity and not aot"

test-hopper: $(CUDA)/.ready
	JAX_PLATFORMS=cuda $(CUDA)/bin/python -m pytest -rs tests/kernels/test_linear_head_mgpu.py

compile-mgpu: $(CUDA)/.ready
	$(CUDA)/bin/python benchmarks/compile_mgpu.py

parity: $(VENV)/.parity
	$(PYTEST) -m parity tests/parity

parity-sweep: $(VENV)/.parity
	JAX_PLATFORMS=cpu XLA_FLAGS=--xla_backend_optimization_level=1 \
		$(BIN)/python -m tests.parity.sweep --seeds $(SEEDS) --first $(FIRST)

chaos: $(VENV)/.test
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.chaos --kills $(KILLS) --seed $(SEED)

multiprocess: $(VENV)/.test
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.multiprocess

aot: $(VENV)/.aot
	$(PYTEST) -m aot tests/kernels tests/planning/test_plan_aot.py

# Half an hour on two cores with nothing else at work.
bench: $(VENV)/.parity $(VENV)/.aot
	$(BIN)/python experiments/bench_rewards.py
	$(BIN)/python experiments/bench_sampling.py
	$(BIN)/python benchmarks/pack_pictures.py
	$(BIN)/python benchmarks/conversations.py
	$(BIN)/python benchmarks/scoring_cost.py --responses 1 --rounds 9
	$(BIN)/python experiments/bench_head.py

bench-load: $(VENV)/.demo
	JAX_PLATFORMS=cpu $(BIN)/python benchmarks/load_checkpoint.py

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

cases: export OBJECTIVES := $(abspath $(OBJECTIVES))
cases: export VERIFIERS := $(abspath $(VERIFIERS))
cases: $(VENV)/.test
	$(PYTEST) tests/test_cases.py tests/rewards/test_verifier_cases.py

fuzz: export FUZZ_EXAMPLES := $(EXAMPLES)
fuzz: $(VENV)/.test
	$(PYTEST) tests/rewards/test_fuzz.py

functions: $(VENV)/.test
	$(BIN)/python -m tests.functions

table: $(VENV)/.demo
	$(BIN)/python experiments/table_tiny_digits.py

study: $(VENV)/.demo
	$(BIN)/python experiments/perception_study.py

# Before an install, one line each: what is wrong, and the way out.
$(VENV)/.demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("vrl_jax needs Python 3.11 or newer, and $(PYTHON) is %d.%d: install it, or name another one: make PYTHON=python3.12 demo" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import shutil, sys; free = shutil.disk_usage(".").free; free > 3e9 or sys.exit("vrl_jax needs 3 GB of disk, and %s has %.1f GB left: make room" % (sys.argv[1], free / 1e9))' "$(CURDIR)"
	@echo "installing vrl_jax and what it needs into $(VENV): about a minute"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	@$(PIP) --editable ".[test]"
	@touch $@

$(VENV)/.parity: $(VENV)/.test
	@$(PIP) --editable ".[test,parity]"
	@touch $@

$(VENV)/.aot: $(VENV)/.test
	@$(PIP) --editable ".[test,aot]"
	@touch $@

$(NEW)/.ready: pyproject.toml
	@echo "installing the newest jax into $(NEW)"
	@test -x $(NEW)/bin/python || $(NEW_PYTHON) -m venv $(NEW)
	@$(NEW)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade \
		jax jaxtyping numpy pytest pytest-xdist
	@$(NEW)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -e .

$(CUDA)/.ready: pyproject.toml
	@echo "installing jax for CUDA into $(CUDA): 5 GB"
	@test -x $(CUDA)/bin/python || $(NEW_PYTHON) -m venv $(CUDA)
	@$(CUDA)/bin/python -m pip --disable-pip-version-check install --quiet --upgrade \
		"jax[cuda13]" jaxtyping nvidia-cuda-nvdisasm pytest
	@$(CUDA)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps -e .

clean:
	rm -rf $(VENV) $(NEW) $(CUDA) .cache build *.egg-info

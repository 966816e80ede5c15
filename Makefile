# make bench: the speed report. make test: the tests that need no GPU. make thorough: the same with every case of them.
# make machine: the same compiled for ARCH, and run without it. make gpu: everything that needs a GPU.

PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile

# A GPU gets the newest torch of PyPI, which is built for CUDA: for ROCm give TORCH="torch --index-url ...".
# Without a GPU, a version whose small CPU build pip may find at hand.
TORCH ?= $(if $(wildcard /dev/nvidiactl /dev/kfd /dev/dxg /dev/dri/renderD128),torch,torch==2.13.0)

# Dozens of processes import torch, which takes half the time where bytecode is kept.
export PYTHONDONTWRITEBYTECODE :=

ARCH ?= sm_90

.PHONY: bench test thorough machine gpu lint clean

bench: $(VENV)/installed
	$(VENV)/bin/python -m benchmarks

thorough: CASES := -m ""
test thorough: $(VENV)/installed lint
	TRITON_INTERPRET=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal $(CASES)
	TRITON_INTERPRET=0 $(VENV)/bin/python -m pytest -n 2 --dist worksteal $(CASES) --benchmark-disable tests/compiled benchmarks

machine: $(VENV)/installed
	TRITON_INTERPRET=0 TRITONBN_TEST_MACHINE=$(ARCH) $(VENV)/bin/python -m pytest -n 2 --dist worksteal \
		-m "not thorough and not backend_choice"  # under the machine the kernels are the only choice

gpu: $(VENV)/installed
	@$(VENV)/bin/python -c "import sys, torch; sys.exit(not torch.cuda.is_available() and 'make gpu: torch sees no GPU; \
	after adding one, or for another build of torch: make clean, then make gpu TORCH=...')"
	$(VENV)/bin/tritonbn info
	failed=0; \
	TRITON_INTERPRET=0 $(VENV)/bin/python -m pytest -n 4 --dist worksteal -m "" || failed=1; \
	TRITON_INTERPRET=0 $(VENV)/bin/python -m pytest --benchmark-disable benchmarks -k odd || failed=1; \
	$(VENV)/bin/python -m benchmarks || failed=1; \
	exit $$failed  # a test that fails keeps nobody from the report

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/installed: pyproject.toml .ci/requirements.py
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) --no-deps --editable .
	$(PIP) $$($(VENV)/bin/python .ci/requirements.py)
	touch $@

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis

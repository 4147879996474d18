# make serve    set up, build the built-in model, serve it      make test    set up, run the tests
# make install  the set-up alone                                make check   ruff and mypy --strict
# make fuzz     ten million characters of broken answers        FUZZ="--characters 50000000 --seed 7"
# make chaos    overload, killed clients, the end, a lost engine CHAOS="--rows capacity drain"
# make soak     50,000 requests: what is left of them           SOAK="--requests 5000"
#
# PYTHON=python3.12   which Python to use        KIND=cpu|cuda   which engine (auto: by the machine)
# ARGS="--port 9000"  flags for serve.py         TESTS="-k sse"  arguments for pytest

# The first of these that runs and is 3.11 or 3.12.
find_python = for python in python3.11 python3.12 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done
PYTHON ?= $(shell $(find_python))
KIND ?= auto
RUN = nice -n 5 .venv/bin/python

.PHONY: help install model serve test fuzz chaos soak check format clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^# /s/^# //p; /^$$/q' Makefile

install:
	@python="$(PYTHON)"; test -n "$$python" || { echo "Python 3.11 or 3.12 is needed: make install PYTHON=/path/to/python3.11"; exit 1; }; \
	nice -n 5 "$$python" .ci/setup.py --kind $(KIND)

model: install
	@$(RUN) -m functionary_vllm.models

serve: install
	@.venv/bin/python serve.py $(ARGS)

test: install model
	@$(RUN) -m pytest $(TESTS)

fuzz: install model
	@$(RUN) -m tests.fuzz $(FUZZ)

chaos: install model
	@$(RUN) -m tests.test_robustness --bodies 100000
	@$(RUN) -m benchmarks.chaos $(CHAOS)

soak: install model
	@$(RUN) -m benchmarks.soak $(SOAK)

check: install
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy --strict functionary_vllm $(wildcard serve.py benchmarks)

format: install
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

# Built models and tokenizers stay in the user's cache folder; `rm -r` it by hand to be rid of them.
clean:
	rm -rf .venv .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

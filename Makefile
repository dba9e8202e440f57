# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WHEN_IDLE := $(if $(shell command -v chrt),chrt --idle 0,nice -n 19)

.PHONY: setup demo test lint up clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: setup
	$(BIN)/dualdistill up --root .dualdistill/demo --submit examples/quickstart/job.yaml

up: setup
	$(BIN)/dualdistill up

# Beside the system tests, which wait for servers much of their time, run the others, with the time that nobody wants.
test: setup
	$(WHEN_IDLE) $(BIN)/python -m pytest -m "not system" --numprocesses 2 --dist loadscope >.unit-tests.log 2>&1 & \
	unit=$$!; \
	$(BIN)/python -m pytest -m system; system=$$?; \
	wait $$unit; unit=$$?; \
	cat .unit-tests.log; rm .unit-tests.log; \
	test $$system -eq 0 && test $$unit -eq 0

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .dualdistill .mypy_cache .ruff_cache .pytest_cache .hypothesis

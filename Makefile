# make demo | test | run PROFILE=kaggle-t4 RUN=name | bench-judge | lint | clean
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROFILE ?= demo
RUN ?= $(PROFILE)

.PHONY: demo test run bench-judge lint clean

demo: $(STAMP)
	$(BIN)/python -m nbutils.run params/demo runs/demo

test: $(STAMP)
	$(BIN)/python -m pytest

run: $(STAMP)
	$(BIN)/python -m nbutils.run params/$(PROFILE) runs/$(RUN)

# measures beside what it is compared with; no test, since a timed test on a shared machine lies
bench-judge: $(STAMP)
	$(BIN)/python bench/judge.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

# runs/ stays: its store holds replies that were paid for
clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache notebooks/.ruff_cache .hypothesis

# installed once; again when a requirements file changes
$(STAMP): requirements.txt requirements-demo.txt constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps -r requirements-demo.txt
	touch $(STAMP)

# make demo | italian | walkthrough | check-pages | run PROFILE=kaggle-t4 RUN=name | kaggle PROFILE=kaggle-t4 USER=name
#      repeat N=5 | ablation | rounds N=2
#      test | test-all | test-vllm | lint | clean | plan | cost PROFILE=kaggle-t4 | bench-judge | bench-sample | bench-dpo | bench-scale
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROFILE ?= demo
RUN ?= $(PROFILE)
N ?= 2
# to recipes in the environment, where no shell reads them as anything but words
export PROFILE RUN N
export OWNER = $(if $(filter command,$(firstword $(origin USER))),$(USER))
VLLM := .venv-vllm
VLLM_PYTHON := $(CURDIR)/$(VLLM)/bin/python

.PHONY: demo italian walkthrough check-pages test test-all test-vllm run kaggle repeat ablation rounds plan cost bench-judge bench-sample bench-dpo bench-scale lint clean

demo: $(STAMP)
	$(BIN)/python -m nbutils.run params/demo runs/demo

# the demo with all its data
italian: $(STAMP)
	$(BIN)/python -m nbutils.run params/italian runs/italian

# the executed notebooks of the demo as pages in docs/
walkthrough: demo
	$(BIN)/python -m tools.walkthrough runs/demo docs

# the pages, and the form that people choose in, in a real browser, where chromium is installed
check-pages: walkthrough
	$(BIN)/python -m pytest tests/check_pages.py tests/check_form.py

# two at a time, a file's tests in one process; a thread each, or they would wait for one another
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
test: $(STAMP)
	$(PYTEST) -m "not nightly"

# what takes minutes too: 25,000 rows, six sessions on Kaggle, a real small judge, two processes
test-all: $(STAMP)
	$(PYTEST) --durations 40

# the real vLLM, on the CPU
test-vllm: $(STAMP) $(VLLM)/.installed
	NBUTILS_VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/python -m pytest tests/check_vllm.py

run: $(STAMP)
	$(BIN)/python -m nbutils.run "params/$$PROFILE" "runs/$$RUN"

# four notebooks and the package for Kaggle, checked by its own client; prints what to type. USER is to be given: the
# shell's variable of that name is the login here
kaggle cost: PROFILE := kaggle-t4
kaggle: $(STAMP)
	$(BIN)/python -m tools.kaggle "params/$$PROFILE" "$$OWNER" build/kaggle

# N trainings on the same pairs, and one interval over all
repeat: $(STAMP)
	$(BIN)/python -m tools.experiments repeat "params/$$PROFILE" "runs/$$RUN" --trainings "$$N"

# which pairs help: original labels, re-ranked, on-policy or both, at equal pairs and steps
ablation: $(STAMP)
	$(BIN)/python -m tools.experiments ablation "params/$$PROFILE" "runs/$$RUN"

# N rounds of sampling, judging and training, each from where the one before ended
rounds: $(STAMP)
	$(BIN)/python -m tools.experiments rounds "params/$$PROFILE" "runs/$$RUN" --rounds "$$N"

# measures beside what it is compared with; no test, since a timed test on a shared machine lies
bench-judge: $(STAMP)
	$(BIN)/python bench/judge.py

# the transformers engine beside that of an older commit; then vLLM beside itself
bench-sample: $(STAMP) $(VLLM)/.installed
	$(BIN)/python bench/local.py
	NBUTILS_VLLM_PYTHON=$(VLLM_PYTHON) $(BIN)/python bench/sample.py

bench-dpo: $(STAMP)
	$(BIN)/python bench/dpo.py

# 50,000 rows through 01
bench-scale: $(STAMP)
	$(BIN)/python bench/scale.py

# which trainings would fit a T4, simulated
plan: $(STAMP)
	$(BIN)/python bench/plan.py

# what a profile costs in hours and calls, by a stated model
cost: $(STAMP)
	$(BIN)/python -m tools.cost "params/$$PROFILE"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/nbstripout --verify --keep-id --extra-keys "metadata.papermill cell.metadata.papermill" notebooks/*.ipynb

# runs/ stays: its store holds replies that were paid for
clean:
	rm -rf $(VENV) $(VLLM) build *.egg-info .pytest_cache .mypy_cache .ruff_cache notebooks/.ruff_cache .hypothesis

# installed once; again when a requirements file changes
$(STAMP): requirements.txt requirements-demo.txt constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps -r requirements-demo.txt
	touch $(STAMP)

$(VLLM)/.installed: requirements-vllm.txt
	test -x $(VLLM_PYTHON) || $(PYTHON) -m venv $(VLLM)
	$(VLLM_PYTHON) -m pip install -q -r requirements-vllm.txt
	$(VLLM_PYTHON) -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

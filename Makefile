# The verbs of this repository; each does the set-up that it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
PORT   ?= 7860
BUNDLE ?= models/phantom
# What trains a network runs once more with the instructions of another processor: sums are then added in another order,
# but for what is alike on every processor.
OTHER    := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Haswell OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
TRAINING := tests/sd/test_losses.py tests/experiments/test_compare_training.py \
	tests/pipeline/test_evidence_head.py $(addprefix tests/training/test_,objectives.py engine.py pseudo_labels.py)
ALIKE    := $(addprefix --deselect=tests/,training/test_engine.py::test_what_a_stage_freed_is_given_back_to_the_system \
	sd/test_losses.py::test_the_compiled_loss_is_the_eager_one_in_one_graph)

.PHONY: help app test check docs bench lock programs clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /	/' | expand -t 12

app: $(VENV)/.core ## set up what serving needs and open the web app (PORT=7860 BUNDLE=models/phantom)
	$(BIN)/medsd app $(BUNDLE) --port $(PORT) --open

# One thread each: two would wait for each other. A third process works while others wait for browsers and servers.
test: $(VENV)/.dev programs check ## set up everything and run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
	$(OTHER) $(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile $(TRAINING) $(ALIKE)

check: $(VENV)/.dev ## formatting, types, and which room may import which
	$(BIN)/ruff format --check medsd tests docs
	$(BIN)/ruff check medsd tests docs
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev ## build the documentation into site/ (open site/index.html)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean

bench: $(VENV)/.dev ## measurements on real data (MEDSD_DATA=folder); slow
	$(BIN)/python -m pytest -m bench tests
	@missed=; for script in tests/bench/bench_*.py; do echo "## $$script"; \
		$(BIN)/python -m $$(echo $${script%.py} | tr / .) || missed="$$missed $$script"; done; \
		if [ -n "$$missed" ]; then echo "not kept, or stopped:$$missed" >&2; exit 1; fi

lock: $(VENV)/bin/python ## write .ci/requirements.lock: what serving installs, every file with its hash (Linux x86-64, Python 3.11)
	$(PIP) --dry-run --ignore-installed --only-binary :all: --report $(VENV)/lock.json .
	$(BIN)/python -c 'import json; print(*sorted("%s==%s --hash=sha256:%s" % (one["metadata"]["name"], one["metadata"]["version"], \
		one["download_info"]["archive_info"]["hashes"]["sha256"]) \
		for one in json.load(open("$(VENV)/lock.json"))["install"] if not one["is_direct"]), sep="\n")' > .ci/requirements.lock

# Programs that tests want, each with its Debian packages; where they may not be installed those tests are skipped, and say so.
# No service is started with them.
programs:
	@for wanted in chromium:chromium strace:strace dcmsend:dcmtk dciodvfy:dicom3tools Orthanc:orthanc,orthanc-dicomweb; do \
		name=$${wanted%%:*}; packages=$$(echo $${wanted#*:} | tr , ' '); \
		if ! command -v $$name >/dev/null 2>&1 && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then \
			echo "installing $$packages for the tests"; \
			apt-get update -qq && RUNLEVEL=1 SYSTEMD_OFFLINE=1 apt-get install -y -qq --no-install-recommends $$packages >/dev/null \
				|| echo "$$packages could not be installed: the tests that want it are skipped"; \
		fi; \
	done

clean: ## remove the environment and what tools left
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("medsd needs Python 3.11 or newer: make PYTHON=python3.11 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing medsd (the serving side)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing medsd with everything for training and tests"
	@$(PIP) --editable '.[train,notes,pacs,deid,tune,mlflow,qdrant,cluster,docs,dev]'
	@touch $@ $(VENV)/.core

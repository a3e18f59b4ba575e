# `make help` lists the targets. Every one of them sets up what it needs first, once.
#
# SETUP=venv    (default) use .venv in this checkout, made on first use; PYTHON makes it
# SETUP=active  use the environment of PYTHON: what it has is kept, what it lacks is installed
# SETUP=none    use the environment of PYTHON and install nothing (a machine without a network that
#               has the packages already): the op is compiled in place, and the two packages are
#               found by way of PYTHONPATH=build/checkout
PYTHON ?= python3
SETUP ?= venv

ifeq ($(SETUP),venv)
RUN := .venv/bin/python
else ifeq ($(SETUP),active)
RUN := "$(PYTHON)"
else ifeq ($(SETUP),none)
RUN := "$(PYTHON)"
export PYTHONPATH := $(CURDIR)/build/checkout$(if $(PYTHONPATH),:$(PYTHONPATH))
else
$(error SETUP is "$(SETUP)"; it must be venv, active or none)
endif

.PHONY: help quickstart test lint format doctor setup clean distclean

help:
	@echo "make quickstart  train and evaluate a small model on the sample pictures (about 10 minutes)"
	@echo "make test        run the tests; ARGS='-k matcher' chooses among them"
	@echo "make lint        check the formatting and the code; make format mends what can be mended"
	@echo "make doctor      report on the installation, and what to do about what is wrong with it"
	@echo "make setup       only set up"
	@echo "make clean       remove what builds and tests left; make distclean: the environment, too"
	@echo
	@echo "SETUP=venv       (default) everything goes into .venv in this checkout"
	@echo "SETUP=active     use the active environment, and install what it lacks"
	@echo "SETUP=none       use the active environment, and install nothing"
	@echo "PYTHON=python3   the Python that makes .venv, or that of the active environment"

setup:
	@"$(PYTHON)" tools/setup_environment.py $(SETUP)

quickstart: setup
	$(RUN) tools/quickstart.py

test: setup
	$(RUN) -m pytest $(ARGS)

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

doctor:
	@$(RUN) mask2former/doctor.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache
	rm -f ops/*.so ops/build_failure_*.txt
	find . -name __pycache__ -not -path "./.venv/*" -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv

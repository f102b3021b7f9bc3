# SPDX-License-Identifier: Apache-2.0
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Two thread pools on few cores are many times slower than one.
export OMP_NUM_THREADS ?= 1
ACTIVATE := source environment/activate.sh
DEMO_OUT ?= out/demo
PYTEST_ARGS ?=
TEST_WORKERS ?= 2
SETUP_ARGS ?=

.PHONY: help setup demo test lint format clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: ## make .venv, install the pinned packages, build the ROS interfaces
	environment/setup.sh $(SETUP_ARGS)

demo: setup ## simulate a dark tunnel, map it through ROS 2, score the result
	$(ACTIVATE) && env -u OMP_NUM_THREADS dark3r demo -o $(DEMO_OUT)

test: ## lint, type check and all tests; PYTEST_ARGS='-m "not slow"' chooses, TEST_WORKERS=1 saves memory
	environment/setup.sh --mesh
	$(MAKE) --no-print-directory lint
	$(ACTIVATE) && python -m pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: setup ## ruff and mypy
	$(ACTIVATE) && ruff check . && ruff format --check . && mypy dark3r_ros

format: setup ## rewrite the sources in the house style
	$(ACTIVATE) && ruff check --fix . && ruff format .

clean: ## remove everything that set-up and the build made
	rm -rf .venv build install log out *.egg-info .pytest_cache .mypy_cache .ruff_cache

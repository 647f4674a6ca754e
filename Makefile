# Two commands to know: `make quickstart` and `make test`; each sets up .venv first.
.DEFAULT_GOAL := help
.PHONY: help quickstart test lint format lock images clean setup setup-dev
SHELL := /bin/bash
export PYTHON
# Without bytecode on disk every process would compile vLLM and torch anew, for half a minute.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show what there is
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## Make .venv to run recipes on this machine's CPU
	@scripts/setup.sh cpu

setup-dev: ## Make .venv to work on the code
	@scripts/setup.sh dev

quickstart: setup ## Train a tiny model through the real loop, in minutes, without a GPU
	@.venv/bin/rlpost train recipe=quickstart objective=mhpo $(ARGS)

test: setup-dev ## Run every check: style, imports, types, unit and integration tests
	@.venv/bin/python scripts/leave_nothing.py scripts/checks.sh

lint: setup-dev ## Run the checks that start nothing
	@scripts/checks.sh lint

format: setup-dev ## Rewrite the code in house style
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

lock: setup-dev ## Write requirements/*.txt anew; ARGS=--upgrade takes newer versions
	@scripts/lock.sh $(ARGS)

images: ## Build the container images; ARGS=cpu builds one of them
	@docker/build.sh $(ARGS)

clean: ## Remove .venv, caches and build results; runs/ is yours and stays
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

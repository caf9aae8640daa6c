# Two commands for a new user: `make demo` and `make test`. Each makes its own .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An index with CPU builds of torch for users without a GPU (see README); empty: the default index.
TORCH_INDEX := $(if $(CONSILIUM_TORCH_INDEX),--extra-index-url $(CONSILIUM_TORCH_INDEX))
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH_INDEX) --constraint constraints.txt

.PHONY: help demo test lint unit bench bench-large bench-ratios soak studies studies-quick mutations proto lint-proto docs clean

help: ## What there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing (about a minute) ..."
	$(INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing (about a minute) ..."
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo ## Nine institutions, a coordinator and an authority on this machine; report in runs/
	$(BIN)/python -m deploy.demo

test: lint unit ## Everything CI checks

lint: $(VENV)/.dev ## Style, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

unit: $(VENV)/.dev ## The tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

bench: $(VENV)/.demo ## Secure rounds, as a table and bench/results.json
	$(BIN)/python -m deploy.bench

bench-large: $(VENV)/.demo ## Up to 300 institutions, and the paper's 513.7 million parameters (50 GB of disk)
	$(BIN)/python -m deploy.bench_scaling
	$(BIN)/python -m deploy.bench --set many --passes 1
	$(BIN)/python -m deploy.bench_large
	$(BIN)/python -m deploy.bench_large --optimiser fedadam --cases masks:0

soak: $(VENV)/.demo ## 200 rounds over real processes: memory and open files must not grow
	$(BIN)/python -m deploy.bench_soak

bench-ratios: $(VENV)/.demo ## A small bench that fails where a ratio worsened by a third (CI)
	$(BIN)/python -m deploy.bench_small

studies: $(VENV)/.demo ## The paper's experiments on ../shared/tcga (BUDGET=2h); docs/results.md; goes on where it stopped
	$(BIN)/python -m studies.run --write $(if $(BUDGET),--budget $(BUDGET))

studies-quick: $(VENV)/.demo ## Every study in small; fails where a figure is not the committed one (CI)
	$(BIN)/python -m studies.quick

mutations: $(VENV)/.dev ## Takes each security check out and sees its attack test fail
	$(BIN)/python -m tests.mutations

proto: $(VENV)/.dev ## Regenerates the committed stubs
	sh proto/generate.sh

lint-proto: ## buf lint of the wire contract (needs npm)
	npx --yes @bufbuild/buf@1.75.0 lint proto

docs: $(VENV)/.dev ## Regenerates the generated pages
	$(BIN)/python -m federation.plan_reference > docs/plan-reference.md
	$(BIN)/python -m monitoring.reference > docs/metrics.md
	$(BIN)/python -m deploy.bench_docs
	$(BIN)/python -m monitoring.dashboards

clean: ## Removes what make made, but not runs/
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build *.egg-info

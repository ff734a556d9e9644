# Works on a machine that has only Python, pip and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
WORKERS ?= 2

.PHONY: demo test check unit claims benchmarks peers docs lock clean

$(STAMP): requirements/test.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/test.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/nearly compare exp2 --domain 0 1 --within 1e-12 --out demo

test: check unit

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright

unit: $(STAMP)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

# Everything that takes longer: slow tests, then every claim that needs no GPU.
claims: $(STAMP)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile -m slow
	for cost in fast medium slow; do $(BIN)/nearly claims --cost $$cost --write || exit 1; done

benchmarks: $(STAMP)
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

# The libraries that ours are compared with; torch, which is large, comes with the extra `torch`.
peers: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/peers.lock

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.lock
	for file in examples/*.py; do $(BIN)/python $$file || exit 1; done
	$(BIN)/mkdocs build --strict

# Needs uv; universal, hashed, and without any address.
lock:
	uv pip compile pyproject.toml --extra test --extra cluster --extra sos $(LOCK) -o requirements/test.lock
	uv pip compile pyproject.toml --extra peers -c requirements/test.lock $(LOCK) -o requirements/peers.lock
	uv pip compile pyproject.toml --extra docs -c requirements/test.lock $(LOCK) -o requirements/docs.lock

LOCK := --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url \
	--no-emit-find-links --python-version 3.11

clean:
	rm -rf .venv site demo .pytest_cache .ruff_cache .hypothesis

# The two commands that a newcomer needs: `make demo` and `make test`. Everything else is for contributors.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
STAMP := $(VENV)/.installed
NPM := $(shell command -v npm 2>/dev/null)
NODE_STAMP := contracts/node_modules/.installed

.PHONY: demo test setup check bench lock contracts contracts-check proto wheel clean

demo: $(STAMP) node
	@$(BIN)/dstack-cloud demo $(ARGS)

test: $(STAMP) node
	$(BIN)/pytest -n auto $(ARGS)

setup: $(STAMP) node

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "python 3.11 or newer is needed; PYTHON=python3.12 make ... picks another one" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "on Debian: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }

$(UV): $(VENV)/bin/python locks/uv.txt
	@$(BIN)/python -m pip install --quiet --require-hashes --requirement locks/uv.txt
	@touch $(UV)

$(STAMP): $(UV) pyproject.toml locks/dev.txt
	@echo "setting up the python environment (first run only)"
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes --requirement locks/dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

# node gives the demo and the tests a real chain (anvil) and the compiler (solc); without it they use py-evm.
.PHONY: node
ifeq ($(NPM),)
node:
	@:
else
node: $(NODE_STAMP)
endif

$(NODE_STAMP): contracts/package-lock.json contracts/package.json
	@echo "setting up anvil and solc from npm (first run only)"
	@cd contracts && { npm ci --ignore-scripts --silent && touch node_modules/.installed || \
	  echo "npm could not install them; going on without node" >&2; }

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory wheel

wheel: $(STAMP)
	@rm -rf dist
	$(UV) build --quiet --python $(BIN)/python --no-build-isolation --wheel --out-dir dist
	@ls dist

bench: $(STAMP) node
	$(BIN)/python -m bench $(ARGS)

contracts: solc
	cd contracts && node build.mjs

contracts-check: solc
	cd contracts && node build.mjs --check

.PHONY: solc
solc: node
	@command -v node >/dev/null && test -d contracts/node_modules/solc || \
	  { echo "the contracts' compiler comes from npm: install node and npm, then run this again" >&2; exit 1; }

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. shared/rpc/kms.proto

EXTRAS := authorize-aws authorize-gcp verify-aws verify-gcp enclave cli demo
COMPILE := pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --no-emit-find-links --no-emit-index-url
lock: $(UV)
	for extra in $(EXTRAS); do \
	  $(UV) $(COMPILE) --upgrade pyproject.toml --extra $$extra --output-file locks/$$extra.txt; done
	$(UV) $(COMPILE) --upgrade pyproject.toml --all-extras --group dev --output-file locks/dev.txt
	echo 'hatchling>=1.27' | $(UV) $(COMPILE) --upgrade - --output-file locks/build.txt
	echo 'uv' | $(UV) $(COMPILE) --upgrade - --output-file locks/uv.txt

clean:
	rm -rf $(VENV) dist build contracts/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis

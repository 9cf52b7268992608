# The two commands that a newcomer needs: `make demo` and `make test`. Everything else is for contributors.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
STAMP := $(VENV)/.installed
NPM := $(shell command -v npm 2>/dev/null)
NODE_STAMP := contracts/node_modules/.installed
DIFFERENTIAL_STAMP := tests/differential/node_modules/.installed
SAFE_STAMP := tests/safe/node_modules/.installed
SDK_STAMP := tests/sdk/node_modules/.installed

.PHONY: demo test setup check package bench fuzz lock contracts contracts-check proto wheel clean

# make demo PLATFORM=gcp runs it on simulated Google Cloud TDX guests instead of Nitro enclaves; ARGS are the
# command's own options, as in make demo ARGS=--json
PLATFORM ?= nitro
demo: $(STAMP) node
	@$(BIN)/dstack-cloud demo --platform $(PLATFORM) $(ARGS)

# Bytecode is kept whatever the shell says: the tests start hundreds of Python processes, and each would compile
# all that it imports.
test: $(STAMP) node differential safe sdk
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n auto $(ARGS)

setup: $(STAMP) node differential safe sdk

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
# The tests compare TDX verdicts with an implementation from npm too, have a Safe own a contract, and call the
# guest agent with the JavaScript SDK.
.PHONY: node differential safe sdk
ifeq ($(NPM),)
node differential safe sdk:
	@:
else
node: $(NODE_STAMP)
differential: $(DIFFERENTIAL_STAMP)
safe: $(SAFE_STAMP)
sdk: $(SDK_STAMP)
endif

$(NODE_STAMP): contracts/package-lock.json contracts/package.json
	@echo "setting up anvil and solc from npm (first run only)"
	@cd contracts && { npm ci --ignore-scripts --silent && touch node_modules/.installed || \
	  echo "npm could not install them; going on without node" >&2; }

$(DIFFERENTIAL_STAMP): tests/differential/package-lock.json tests/differential/package.json
	@cd tests/differential && { npm ci --ignore-scripts --silent && touch node_modules/.installed || \
	  echo "npm could not install the second TDX verifier; its tests will skip" >&2; }

$(SAFE_STAMP): tests/safe/package-lock.json tests/safe/package.json
	@cd tests/safe && { npm ci --ignore-scripts --silent && touch node_modules/.installed || \
	  echo "npm could not install Safe's contracts; the tests of gov and its pages will skip" >&2; }

$(SDK_STAMP): tests/sdk/package-lock.json tests/sdk/package.json
	@cd tests/sdk && { npm ci --ignore-scripts --silent && touch node_modules/.installed || \
	  echo "npm could not install the JavaScript SDK; its tests will skip" >&2; }

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

# What is deployed, below build/: a zip for each AWS function, a source directory for each Google Cloud function.
# PACKAGE_PYTHON is an interpreter of the version that they will run on; ARGS=--architecture=arm64 is for Graviton.
PACKAGE_PYTHON ?= $(BIN)/python
package: $(STAMP)
	@$(BIN)/python -m functions.packaging --out build --python $(PACKAGE_PYTHON) $(ARGS)

bench: $(STAMP) node
	$(BIN)/python -m bench $(ARGS)

# How long `make fuzz` mutates bytes for each target; the tests do the same for half a second.
SECONDS ?= 120
fuzz: $(STAMP)
	FUZZ_SECONDS=$(SECONDS) $(BIN)/pytest tests/fuzz -n auto -p no:cacheprovider $(ARGS)

contracts: solc
	cd contracts && node build.mjs

contracts-check: solc
	cd contracts && node build.mjs --check

.PHONY: solc
solc: node
	@command -v node >/dev/null && test -d contracts/node_modules/solc || \
	  { echo "the contracts' compiler comes from npm: install node and npm, then run this again" >&2; exit 1; }

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. shared/rpc/*.proto

EXTRAS := authorize-aws authorize-gcp verify-aws verify-gcp deploy-aws deploy-gcp governance-aws governance-gcp enclave cli verifier demo
COMPILE := pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
  --no-emit-find-links --no-emit-index-url
lock: $(UV)
	for extra in $(EXTRAS); do \
	  $(UV) $(COMPILE) --upgrade pyproject.toml --extra $$extra --output-file locks/$$extra.txt; done
	$(UV) $(COMPILE) --upgrade pyproject.toml --all-extras --group dev --output-file locks/dev.txt
	echo 'hatchling>=1.27' | $(UV) $(COMPILE) --upgrade - --output-file locks/build.txt
	echo 'uv' | $(UV) $(COMPILE) --upgrade - --output-file locks/uv.txt

clean:
	rm -rf $(VENV) dist build contracts/node_modules contracts/upstream_suite/node_modules contracts/upstream_suite/build tests/differential/node_modules tests/safe/node_modules tests/sdk/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis

# make setup check test demo: on a fresh machine each sets up what it needs. PYTHON picks the interpreter, 3.11 to 3.14;
# TORCH=cpu or TORCH=cuda the build of torch: tools/install.py.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install setup kernels checkov check test faults bench demo protos sync rules screenshots lock sbom dist format clean
.DELETE_ON_ERROR:

install: ## a server and its client, for PYTHON, with its kernels compiled
	$(PYTHON) tools/install.py --compile constraints-server.txt

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt constraints-torch.txt constraints-torch-cpu.txt
	$(PYTHON) tools/install.py --venv $(VENV) --editable constraints.txt
	touch $@

kernels: $(VENV)/.kernels ## compiled ahead, so that tests and benchmarks measure what a server does once it has them

$(VENV)/.kernels: $(VENV)/.installed $(wildcard normcore/kernels/cpu/compiled/*.py)
	$(BIN)/python -m normcore.kernels usual
	touch $@

checkov: $(VENV)/checkov/.installed ## for the tests of deploy/, in an environment of its own: its pins are not ours

$(VENV)/checkov/.installed: deploy/checkov.txt | setup
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)/checkov
	$(BIN)/uv pip install --quiet --python $(VENV)/checkov/bin/python --no-deps --require-hashes --only-binary :all: \
	    --requirement deploy/checkov.txt
	$(BIN)/uv pip check --quiet --python $(VENV)/checkov/bin/python
	touch $@

check: setup ## lint, types, walls between the rooms, contract, generated code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/generate_protos.py --check
	$(BIN)/python tools/generate_sync.py --check
	$(BIN)/python tools/generate_rules.py --check

test: kernels ## all tests but those that take minutes, with coverage
	rm -f .coverage*
	$(BIN)/coverage run -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --ignore tests/faults $(ARGS)
	$(BIN)/coverage run -m pytest tests/faults $(ARGS) # one after another: they measure
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

faults: kernels ## each promise at its full size, some 45 minutes: kill -9 at every write, cut connections, overload, bombs
	$(BIN)/python -m pytest tests -m faults $(ARGS)

bench: kernels ## the figures of the README, on this machine: some 45 minutes
	$(BIN)/python -m benchmarks.aggregation $(ARGS)
	$(BIN)/python -m benchmarks.kernels
	$(BIN)/python -m benchmarks.wire
	$(BIN)/python -m benchmarks.peers

demo: setup ## the whole service on real data: four workers, a kill -9, and exact statistics
	$(BIN)/python examples/demo.py

protos: setup ## generate client/normstats/v1 from proto/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/generate_protos.py

sync: setup ## generate the sync client from the asyncio one
	$(BIN)/python tools/generate_sync.py

rules: setup ## the Prometheus operator's form of deploy/prometheus/rules.yaml
	$(BIN)/python tools/generate_rules.py

screenshots: setup ## docs/screenshots, of a server with real data
	$(BIN)/python tools/screenshots.py

lock: setup ## pin and hash what is new in pyproject.toml: constraints*.txt
	$(BIN)/python tools/lock.py $(ARGS)

sbom: setup ## a list, in CycloneDX, of all that a server runs with: dist/normstats.cdx.json
	$(BIN)/python tools/sbom.py

dist: setup ## a wheel of normstats, checked: dist/normstats-*.whl
	$(BIN)/python tools/wheel.py

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Everything runs in .venv, which the targets create. `make` alone lists them. GNU make 3.81 or later, any POSIX shell.

VENV := .venv
BIN := $(VENV)/bin
SANITIZED_TESTS := tests/native tests/ops/cpu tests/model/test_native.py
CLIENTS := .venv-clients
PIP := $(BIN)/python -m pip --disable-pip-version-check

ARGS :=

.PHONY: help install serve test test-all test-clients fuzz lint format sanitize constraints clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "  PYTHON=...        the Python that makes .venv: 3.11 or later, by default the first one found"

install: ## make .venv with Pelagos and its test tools, again when what they are made from has changed
	@sh scripts/install.sh test

serve: ## make .venv with Pelagos and serve the built-in model with its chat page; more options: make serve ARGS="--port 9000"
	@sh scripts/install.sh
	@$(BIN)/pelagos serve $(ARGS)

test: lint ## lint, then all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

test-all: lint ## lint, then all tests: minutes and gigabytes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

# Clients bring hundreds of megabytes, and versions of libraries that are not ours to choose: an environment of their own.
test-clients: install ## real clients of others against a server: downloads them into .venv-clients, some minutes
	@set -e; made_from=$$(pwd; cat tests/clients/requirements.txt tests/clients/package.json | cksum); \
	if [ "$$(cat $(CLIENTS)/.installed 2>/dev/null)" != "$$made_from" ]; then \
		$(BIN)/python -m venv --clear $(CLIENTS); \
		$(CLIENTS)/bin/python -m pip --disable-pip-version-check install --quiet -r tests/clients/requirements.txt; \
		if command -v npm > /dev/null; then \
			cp tests/clients/package.json $(CLIENTS)/; \
			npm install --prefix $(CLIENTS) --no-audit --no-fund --silent; fi; \
		printf '%s\n' "$$made_from" > $(CLIENTS)/.installed; \
	fi; \
	$(BIN)/python tests/clients/run.py $(CLIENTS) --node "$$(command -v node || true)"

# Not among the test tools, because it brings fifty packages.
fuzz: install ## some seconds of requests that nobody would write, by schemathesis, which is added to .venv
	@$(BIN)/python -c 'import schemathesis' 2>/dev/null || $(PIP) install --quiet -c constraints.txt 'schemathesis>=4.30,<5'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/serving/test_fuzzed_api.py

lint: install ## check style and types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

format: install ## mend the style where that needs no thought
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

# Two builds of their own in build/: Python with the address and undefined-behaviour sanitizers loaded first, and a program
# under the thread sanitizer. Leaks are not looked for, because Python has many.
sanitize: install ## run the tests of the kernels under sanitizers: some minutes
	rm -rf build/sanitized
	$(PIP) install --quiet --no-build-isolation --no-deps --target build/sanitized -C build-dir=build/address \
		-C cmake.define.PELAGOS_SANITIZE=address -C install.strip=false .
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitized PELAGOS_OPS=native OMP_NUM_THREADS=1 \
		$(BIN)/pytest -q -p no:cacheprovider $(SANITIZED_TESTS)
	$(BIN)/cmake -S . -B build/thread -G Ninja -DPELAGOS_SANITIZE=thread \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja > build/thread.log
	$(BIN)/cmake --build build/thread
	build/thread/pelagos_races

constraints: install ## write the versions that .venv holds to constraints.txt
	@echo '# The tested versions, written by "make constraints": no local tags, no GPU packages, not this project.' > $(VENV)/new
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' | grep -v -i -E '^(nvidia-|triton)' >> $(VENV)/new
	mv $(VENV)/new constraints.txt

clean: ## remove caches and build outputs, but not .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name $(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

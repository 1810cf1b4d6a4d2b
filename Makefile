# Everything runs in .venv, which the targets create. `make` alone lists them. GNU make 3.81 or later, any POSIX shell.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNEL_STAMP := $(VENV)/.kernels
SANITIZED_TESTS := tests/native tests/ops/cpu tests/model/test_native.py
BUILD_TOOLS := cmake nanobind ninja scikit-build-core
PIP := $(BIN)/python -m pip --disable-pip-version-check
NEEDED_MIB := 2048
SAY_IF_MISSING := 'from pelagos.ops.cpu.module import native_reason as why; print("Note:", why()) if why() else None'
NEW_ENOUGH := sys.exit(sys.version_info < (3, 11))

.PHONY: help install test test-all lint format sanitize constraints clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo "  PYTHON=...        the Python that makes .venv: 3.11 or later, by default the first one found"

# The stamps hold what .venv was made from, this folder and the two files, and what the kernels were made from, the sources
# and the compiler. Where the first is right nothing is fetched and no network is needed; where both are, nothing is done.
install: ## make .venv with Pelagos and its test tools, again when what they are made from has changed
	@set -e; found=; \
	made_from=$$(pwd; cat pyproject.toml constraints.txt | cksum); \
	kernels_from=$$(command -v $${CXX:-c++} || command -v g++ || command -v clang++ || true; \
		find CMakeLists.txt native -type f | LC_ALL=C sort | xargs cksum | cksum); \
	same_kernels=; if [ "$$(cat $(KERNEL_STAMP) 2>/dev/null)" = "$$kernels_from" ]; then same_kernels=yes; fi; \
	if [ -x $(BIN)/python ] && [ "$$(cat $(STAMP) 2>/dev/null)" = "$$made_from" ]; then \
		if [ -n "$$same_kernels" ]; then exit 0; fi; \
		echo "Compiling the native kernels"; \
		$(PIP) install --quiet --no-build-isolation --no-deps -e .; \
		$(BIN)/python -c $(SAY_IF_MISSING); \
		printf '%s\n' "$$kernels_from" > $(KERNEL_STAMP); exit 0; \
	fi; \
	if ! $(BIN)/python -c 'import sys, pip; $(NEW_ENOUGH)' 2>/dev/null; then \
		for candidate in $${PYTHON:-python3.11 python3.12 python3.13 python3 python}; do \
			if "$$candidate" -c 'import sys, venv, ensurepip; $(NEW_ENOUGH)' 2>/dev/null; then found=$$candidate; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "No Python 3.11 or later with its venv module was found (looked for" \
				"$${PYTHON:-python3.11, python3.12, python3.13, python3, python})." \
				"Install one, or name one: make PYTHON=/path/to/python3.11 test" >&2; exit 1; fi; \
		free=$$(df -Pk . | awk 'NR == 2 { print int($$4 / 1024) }'); \
		if [ "$$free" -lt $(NEEDED_MIB) ]; then \
			echo "The disk of this folder has $$free MiB left, and .venv needs about $(NEEDED_MIB) MiB" \
				"(with a CUDA build of torch 7000)." >&2; exit 1; fi; \
		echo "Making .venv with $$("$$found" --version)"; \
		"$$found" -m venv --clear $(VENV); \
	fi; \
	echo "Installing Pelagos and its test tools in .venv, compiling its kernels"; \
	$(PIP) install --quiet -c constraints.txt $(BUILD_TOOLS); \
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[test]'; \
	$(BIN)/python -c $(SAY_IF_MISSING); \
	printf '%s\n' "$$kernels_from" > $(KERNEL_STAMP); \
	printf '%s\n' "$$made_from" > $(STAMP)

test: lint ## lint, then all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

test-all: lint ## lint, then all tests: minutes and gigabytes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

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

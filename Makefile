# make demo        install into .venv, then answer one prompt with two small real models
# make test        install what the tests need and run them          make test-long   the long suites too
# make lint        layout and types          make format   mend the layout          make clean   remove what was built
#
# Nothing is installed twice: a stamp in .venv carries the checksum of the sources it was installed from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NEEDS := needs `apt install build-essential python3-dev python3-venv`

SOURCES := pyproject.toml CMakeLists.txt LICENSE $(wildcard README.md) cmake cpp python
DIGEST := $(firstword $(shell find $(SOURCES) -type f ! -path '*/__pycache__/*' | LC_ALL=C sort | xargs cksum | cksum))
LLAMA := $(shell sed -n 's/^ *"\(llama-cpp-python==[^"]*\)",$$/\1/p' pyproject.toml)
BUILT := $(VENV)/built-$(DIGEST)
CPP := $(shell find cpp/src tests/cpp -name '*.cpp' -o -name '*.h')

# Before anything is installed: a compiler, and a Python 3.10 or newer with venv and its headers. Else one line, and stop.
FOUND = $(shell $${CC:-cc} --version >/dev/null 2>&1 && $${CXX:-c++} --version >/dev/null 2>&1 && \
    $(PYTHON) -c 'import ensurepip, os, sys, sysconfig, venv; \
    print(sys.version_info >= (3, 10) and os.path.exists(sysconfig.get_path("include") + "/Python.h") or "")' 2>/dev/null)
check = $(if $(FOUND),:,$(error $(NEEDS)))

# llama.cpp's AMX code crashes when GCC compiles it (ggml-org/llama.cpp#26954): the tile configuration is optimised away.
AMX := $(if $(shell grep -s -m1 -o amx_tile /proc/cpuinfo),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
export CFLAGS := $(strip $(CFLAGS) $(AMX))
export CXXFLAGS := $(strip $(CXXFLAGS) $(AMX))

export CMAKE_BUILD_PARALLEL_LEVEL ?= $(shell getconf _NPROCESSORS_ONLN)
unexport MAKEFLAGS MFLAGS # the builds that pip starts are no part of this one
.DELETE_ON_ERROR:
.PHONY: demo test test-long lint format clean

demo: $(VENV)/demo-$(DIGEST)
	@$(BIN)/kad-llama --demo

# Most tests keep one core busy, so two run at a time; llama.cpp's threads then sleep, and do not spin, while they wait.
test: $(VENV)/test-$(DIGEST)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n 2 --dist worksteal

test-long: $(VENV)/test-$(DIGEST)
	$(BIN)/python -m pytest -q -m "long or not long"

lint: $(VENV)/lint-$(DIGEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: $(VENV)/lint-$(DIGEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# ---- Installing ------------------------------------------------------------------------------------------------------

# An extra's packages; kad-llama itself comes from the wheel that is installed already.
$(VENV)/demo-$(DIGEST): EXTRAS = demo
$(VENV)/test-$(DIGEST): EXTRAS = demo,test,bench,eval,lm-eval
$(VENV)/lint-$(DIGEST): EXTRAS = test,eval,lint
$(VENV)/%-$(DIGEST): $(BUILT)
	@echo "kad-llama: installing what \`make $*\` needs"
	@$(PIP) install -q "$$(echo $(BUILT)/*.whl)[$(EXTRAS)]"
	@touch $@

# llama-cpp-python comes first: pip compiles it once, keeps the wheel in its cache, and both the environment that
# builds kad-llama and the one that runs it take it from there.
$(BUILT): $(VENV)/$(LLAMA)
	@$(check)
	@echo "kad-llama: compiling it against that libllama (under a minute)"
	@rm -rf $(VENV)/built-* $(VENV)/demo-* $(VENV)/test-* $(VENV)/lint-*
	@$(PIP) wheel -q --no-deps -w $@.part .
	@$(PIP) install -q "$$(echo $@.part/*.whl)"
	@$(PIP) install -q --force-reinstall --no-deps $@.part/*.whl
	@mv $@.part $@

$(VENV)/$(LLAMA): $(BIN)/python
	@echo "kad-llama: installing $(LLAMA)."
	@echo "The first time, pip compiles llama.cpp: 4 to 8 minutes on two cores. Later installs take it from pip's cache."
	@$(PIP) install "$(LLAMA)"
	@touch $@

$(BIN)/python:
	@$(check)
	@$(PYTHON) -m venv $(VENV)

# SPDX-License-Identifier: Apache-2.0
# make setup   .venv/ with tvhil in it, system packages where they can be installed
# make demo    set up, then run the embedded model on the default emulator
# make test    set up, then run the whole suite
# make lint    ruff, mypy, clang-format
# make fuzz    search for inputs that break what reads bytes, each target for FUZZ_SECONDS (60)

PYTHON ?= python3
FUZZ_SECONDS ?= 60
VENV := .venv
STAMP := $(VENV)/.stamp

.PHONY: setup demo test lint fuzz clean system-packages
setup: system-packages $(STAMP)

system-packages:
	@sh tools/install_system_packages.sh

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,dev]'
	@touch $@

demo: setup
	$(VENV)/bin/tvhil demo

test: setup
	$(VENV)/bin/python -m pytest

lint: setup
	@sh tools/install_system_packages.sh lint
	$(VENV)/bin/ruff check host hil_tests tools
	$(VENV)/bin/mypy
	@git ls-files '*.c' '*.h' | xargs clang-format --dry-run --Werror

fuzz: setup
	@sh tools/install_system_packages.sh fuzz
	$(VENV)/bin/python tools/fuzz.py --seconds $(FUZZ_SECONDS)

clean:
	rm -rf build

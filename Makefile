# make demo   four agents train a CNN on real digits while you watch
# make test   everything that CI runs
# Each target sets up .venv by itself; Python 3.11 or newer and pip are all that is needed.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
say     = @printf '\n== %s\n' "$(1)"

.PHONY: demo test lint fuzz bench faults laboratory loose accuracy proofs docs clean

demo: $(STAMP)
	@$(BIN)/stretto demo

test: lint
	$(call say,pytest)
	@$(BIN)/python -m pytest

lint: $(STAMP)
	$(call say,ruff check)
	@$(BIN)/ruff check .
	$(call say,ruff format --check)
	@$(BIN)/ruff format --check .
	$(call say,mypy --strict)
	@$(BIN)/mypy
	$(call say,import-linter)
	@$(BIN)/lint-imports --no-cache --no-logo

fuzz: $(STAMP)
	$(call say,five minutes of fuzzing)
	@$(BIN)/python tests/fuzz 300

proofs: $(STAMP)
	$(call say,what takes minutes, or the clock on the wall)
	@$(BIN)/python -m pytest tests/proofs/test_learning.py

storms: $(STAMP)
	@mkdir -p docs/results
	@$(BIN)/stretto simulate --faults storm --seeds 10000 --page docs/results/simulate.md
	@$(BIN)/stretto simulate --faults storm --seeds 1000 --codecs --page docs/results/simulate-codecs.md

bench: $(STAMP)
	@mkdir -p docs/results
	@$(BIN)/stretto bench all --folder docs/results

faults: $(STAMP)
	@$(BIN)/python benchmarks/faults.py

laboratory: $(STAMP)
	@$(BIN)/python benchmarks/laboratory.py
	@$(BIN)/python benchmarks/server_laboratory.py --folder docs/results

loose: $(STAMP)
	@$(BIN)/python benchmarks/loose.py --tune

accuracy: $(STAMP)
	@$(BIN)/python benchmarks/accuracy.py
	@$(BIN)/python benchmarks/codecs.py

docs: $(STAMP)
	$(call say,doctests in docs and modules)
	@$(BIN)/python -m pytest --doctest-modules --doctest-glob='*.md' stretto docs README.md

clean:
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A venv without pip of its own is quicker, and works where Debian left ensurepip out.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stretto needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	@echo "setting up $(VENV): this takes a minute or two, once"
	@if $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	    $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install -qq --no-input -c constraints.txt -e '.[digits,dev]'; \
	else \
	    $(PYTHON) -m venv --clear $(VENV) && \
	    $(BIN)/python -m pip install -qq --no-input -c constraints.txt -e '.[digits,dev]'; \
	fi
	@touch $@

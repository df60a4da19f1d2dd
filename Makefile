# Each target makes its own environment from the project's files; only Python >= 3.11 and make are assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu

.PHONY: quickstart test test-slow lint clean

# The core install, and what the tests add to it, are stamped apart: quickstart needs no torch.
$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .[test]
	touch $@

# Fine-tune the shipped ViT (pretrained on the digits 0-4) on a few labels of the digits 5-9: offline, CPU.
quickstart: $(VENV)/.core
	$(BIN)/python -m jaxft.train --config configs/quickstart.py --workdir runs/quickstart
	$(BIN)/python -m jaxft.evaluate --run runs/quickstart

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Each worker takes half of the files in their order, so that what a module makes is made once.
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

# Minutes long, or with real weights when JAXFT_MINILM names a MiniLM checkpoint directory.
test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache

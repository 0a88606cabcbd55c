# Two commands: `make demo` shows the main job on this machine, `make test` runs every check. Nothing else is typed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FLOWER := $(VENV)/flower/.installed
DEPLOYED := $(VENV)/flower/.deployed
BARE := $(VENV)/bare/.installed
LORA := $(VENV)/lora/.installed
IMAGES := $(VENV)/.images

SSHD := PATH="$$PATH:/usr/sbin" command -v sshd >/dev/null

.PHONY: demo test check bench bench-peers claims chaos format clean sshd

demo: $(STAMP)
	rm -rf demo
	$(BIN)/fedctl init demo --template digits
	cd demo && ../$(BIN)/fedctl launch --run demo
	cd demo && ../$(BIN)/fedctl status demo

test: $(STAMP) $(FLOWER) $(LORA) sshd
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

check: $(STAMP) $(LORA)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit tests/scenario tests/cli

bench: $(STAMP) $(FLOWER) $(IMAGES) sshd
	$(BIN)/python -m tests.bench

bench-peers: $(STAMP) $(DEPLOYED) $(BARE) $(IMAGES) sshd
	$(BIN)/python -m tests.bench.peers $(PEERS)

claims: $(STAMP) $(IMAGES)
	$(BIN)/python -m pytest -m slow tests/claims

chaos: $(STAMP) sshd
	$(BIN)/python -m tests.chaos --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Tests run real SSH servers. Where root may, they are installed; else what to type is said.
sshd:
	@$(SSHD) || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends openssh-server iproute2 >/dev/null; } \
	  || { echo 'The tests need OpenSSH'"'"'s server; on Debian or Ubuntu: `sudo apt-get install openssh-server iproute2`'; exit 1; }

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("fedctl needs Python 3.11 or newer; try `make PYTHON=python3.12`" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo 'Python has no venv; on Debian or Ubuntu: `apt install python3-venv`'; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

# What one template needs, beside the rest: torchmetrics imports transformers in every worker that could.
$(LORA): pyproject.toml constraints.txt | $(STAMP)
	test -x $(VENV)/lora/bin/python || $(BIN)/python -m venv $(VENV)/lora
	purelib='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  $(BIN)/python -c "$$purelib" > "$$($(VENV)/lora/bin/python -c "$$purelib")/beside.pth"
	$(VENV)/lora/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[lora]'
	@touch $@

# What strategies are compared with, in an environment of its own.
$(FLOWER): pyproject.toml | $(STAMP)
	test -x $(VENV)/flower/bin/python || $(BIN)/python -m venv $(VENV)/flower
	$(VENV)/flower/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/flower/bin/python -m pip install --quiet --group parity
	@touch $@

# The same, able to train: what whole runs are compared with.
$(DEPLOYED): $(FLOWER) constraints.txt
	$(VENV)/flower/bin/python -m pip install --quiet "$$(grep ^torch== constraints.txt)"
	@touch $@

# And fedctl without the packages of templates and tests, which Lightning would import where they are.
$(BARE): pyproject.toml constraints.txt | $(STAMP)
	test -x $(VENV)/bare/bin/python || $(BIN)/python -m venv $(VENV)/bare
	$(VENV)/bare/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bare/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(VENV)/bare/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

# What claims, benchmarks and peers are tried on.
$(IMAGES): pyproject.toml | $(STAMP)
	$(BIN)/python -m pip install --quiet --no-deps --group claims
	@touch $@

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .ruff_cache .pytest_cache

# Needs git, make and Python 3.10 or later; uv and all other tools come from PyPI.
# To use another interpreter: make PYTHON=/path/to/python3.12 ...

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := check
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:

UV_VERSION := 0.13.9
UV := .venv-uv/bin/uv
UV_READY := .venv-uv/.$(UV_VERSION)
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := pool envs frontends
# Test files that run at once: most of them mostly wait.
JOBS ?= 2
# In the order of names: unit tests are last, and fill the time until the slowest file is done.
AT_ONCE := -n $(JOBS) --dist loadfile --no-loadscope-reorder
# Versions of Python for tarballs, and the parameters of images; ENGINE may be docker or podman.
PYTHONS ?= 3.10 3.11 3.12 3.13
PYTHON_VERSION ?= 3.12
ENGINE ?= docker
REPOSITORY ?= flashpool
TAG ?= latest
CPU_PACKAGES := numpy runpod>=2.0.0rc2,<3
GPU_PACKAGES := $(CPU_PACKAGES) torch==2.9.1 torchvision==0.24.1 torchaudio==2.9.1
IMAGE = $(REPOSITORY)/$(1):py$(PYTHON_VERSION)-$(TAG)
BUILD = $(ENGINE) build -f docker/Dockerfile --target $(2) -t $(call IMAGE,$(1)) \
  --build-arg PYTHON_VERSION=$(PYTHON_VERSION) --build-arg UV_VERSION=$(UV_VERSION) --build-arg BASE_PACKAGES='$(3)' .
SMOKETEST = $(ENGINE) run --rm -v '$(CURDIR)/tests/handlers:/tests/handlers:ro' $(call IMAGE,$(1)) \
  /opt/flashpool/bin/python /tests/handlers/run.py $(2) --folder /flashpool --container
# Prints the first installed Python that is new enough and can create virtualenvs.
FIND_PYTHON := bash tests/support/find_python.sh

export UV_PYTHON_DOWNLOADS := never
# Use the system's certificates, as pip does: some networks have an authority of their own.
export UV_SYSTEM_CERTS := 1
# Ignore an active virtualenv of the caller.
unexport VIRTUAL_ENV

.PHONY: check ci help install run test test-handler test-lb-handler \
  build build-gpu build-cpu build-lb build-lb-cpu build-wip print-cpu-packages print-gpu-packages smoketest smoketest-lb \
  image-without-docker tarball test-on test-newest test-sdk test-all test-gpu test-differential \
  coverage lint format typecheck bench bench-against docs clean

check: lint typecheck test ## Lint, types, tests (the default)

ci: install ## The checks that every change has to pass, on several interpreters
	@bash tests/support/ci.sh

help: ## Print this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1 \2/p' $(firstword $(MAKEFILE_LIST)) \
	  | while read -r name text; do printf '  %-17s %s\n' "$$name" "$$text"; done

install: $(VENV)/.installed ## Create or update .venv, if it is out of date

run: install ## Serve /execute (FLASHPOOL_PORT, default 8000)
	@exec $(BIN)/flashpool serve lb

test: install ## Run the tests, without the slow and GPU ones
	@$(BIN)/python tests/support/client.py
	$(BIN)/pytest $(AT_ONCE) -m 'not slow and not gpu' $(ARGS)

test-handler: install ## Run every tests/handlers/test_*.json through handler.py --test_input
	$(BIN)/python tests/handlers/run.py queue $(ARGS)

test-lb-handler: install ## Run every tests/handlers/test_*.json through a server of lb_handler:app
	$(BIN)/python tests/handlers/run.py balanced $(ARGS)

build: build-gpu build-cpu build-lb build-lb-cpu ## The four images (PYTHON_VERSION, REPOSITORY, TAG, ENGINE)

build-gpu: ## flash: a queue's jobs, with torch
	$(call BUILD,flash,queue,$(GPU_PACKAGES))

build-cpu: ## flash-cpu: a queue's jobs
	$(call BUILD,flash-cpu,queue,$(CPU_PACKAGES))

build-lb: ## flash-lb: load-balanced, with torch
	$(call BUILD,flash-lb,balanced,$(GPU_PACKAGES))

build-lb-cpu: ## flash-lb-cpu: load-balanced
	$(call BUILD,flash-lb-cpu,balanced,$(CPU_PACKAGES))

build-wip: ## The four images, tagged wip
	@$(MAKE) build TAG=wip

print-cpu-packages print-gpu-packages:
	@echo '$(if $(findstring gpu,$@),$(GPU_PACKAGES),$(CPU_PACKAGES))'

smoketest: ## Run tests/handlers inside flash-cpu, after build-cpu
	$(call SMOKETEST,flash-cpu,queue)

smoketest-lb: ## Run tests/handlers inside flash-lb-cpu, after build-lb-cpu
	$(call SMOKETEST,flash-lb-cpu,balanced)

image-without-docker: install ## Build the CPU images with buildah, and test them in a chroot (root, Debian)
	sh docker/build_without_docker.sh

tarball: install ## The tarballs that are injected into other images, in dist/ (PYTHONS='3.12')
	@for python in $(PYTHONS); do $(BIN)/python docker/build_tarball.py --python "$$python" --uv $(UV); done

test-on: $(UV_READY) ## Run the tests of `make test` with PYTHON=..., in a virtualenv of its own
	@python=$$($(FIND_PYTHON)); bash tests/support/test_on.sh "$$python" ".venv-on$${python//\//-}" \
	  $(AT_ONCE) -m 'not slow and not gpu' $(ARGS)

test-all: $(UV_READY) ## All tests, on every supported Python installed here
	@bash tests/support/test_all.sh $(AT_ONCE) $(ARGS)

test-newest: install ## Process and contract tests, with the newest packages in place of the lock's
	@$(UV) venv -q --clear --python "$$(<build/interpreter)" .venv-newest
	@$(UV) pip install -q --python .venv-newest --upgrade --group dev --editable .
	@echo "Not as in the lock:"; \
	  $(UV) pip freeze -q --python .venv-newest | grep -vxFf <($(UV) pip freeze -q --python $(VENV)) || true
	.venv-newest/bin/pytest $(AT_ONCE) -m 'not slow and not gpu' tests/process tests/contract $(ARGS)

test-sdk: install ## Tests of SDK 2.0, with the newest version of its client in place of the oldest
	@$(UV) venv -q --clear --python "$$(<build/interpreter)" .venv-sdk
	@$(UV) pip install -q --python .venv-sdk --upgrade -r tests/sdk2/client2/pyproject.toml
	@$(UV) pip freeze -q --python .venv-sdk | grep '^runpod=='
	SDK_PYTHON='$(CURDIR)/.venv-sdk/bin/python' $(BIN)/pytest $(AT_ONCE) -m 'not slow' tests/sdk2 $(ARGS)

test-differential: install ## Programs in calls and in scripts, with a hundred packages (ARGS='-k data:' for one group)
	@mkdir -p build
	$(BIN)/pytest $(AT_ONCE) -m differential --differential-table=build/differential.txt $(ARGS)

test-gpu: install ## Run the tests that need a GPU
	$(BIN)/pytest -m gpu $(ARGS)

# Measures a copy of the product, whose zygotes report the lines that they run.
coverage: build/interpreter $(UV_READY) ## Measure the lines and branches that the tests run, also in zygotes and workers
	@rm -rf build/lib build/bdist.*
	@UV_PROJECT_ENVIRONMENT=.venv-coverage $(UV) sync -q --frozen --no-editable --group coverage \
	  --python "$$(<build/interpreter)" --reinstall-package flashpool
	@rm -rf build/lib build/bdist.*
	@.venv-coverage/bin/python tests/support/client.py
	@.venv-coverage/bin/python tests/support/measure_coverage.py $(AT_ONCE) -m 'not slow and not gpu' $(ARGS)

lint: install ## ruff, the direction of imports, shell scripts, the Dockerfile, workflows
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/shellcheck docker/*.sh tests/support/*.sh
	$(BIN)/shellcheck --shell=sh frontends/injection/inject.sh
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/actionlint -shellcheck $(BIN)/shellcheck .github/workflows/*.yml

format: install ## Format the sources with ruff
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

typecheck: install ## mypy
	@$(BIN)/mypy -p flashpool.pool -p flashpool.envs -p flashpool.frontends | sed -E "s,build/__editable__[^/]*/flashpool/,,"
	$(BIN)/mypy tests/support tests/handlers docker/build_tarball.py docker/install_wheels.py examples

bench: install ## Measure against the reference of each figure (table and JSON)
	$(UV) sync -q --frozen --inexact --no-install-project --group bench
	$(BIN)/python tests/bench/run.py $(ARGS)

bench-against: install ## Compare the speed of the working tree with COMMIT=<rev>
	@[ -n "$(COMMIT)" ] || { echo 'Which commit? make bench-against COMMIT=<rev>' >&2; exit 2; }
	$(BIN)/python tests/bench/against.py "$(COMMIT)" $(ARGS)

docs: install ## Check the pages, and build them as a site in build/site
	@$(UV) sync -q --frozen --inexact --no-install-project --group docs
	PYTHONPATH=tests $(BIN)/python -m support.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --clean

clean: ## Remove environments, caches and builds
	rm -rf .venv .venv-uv .venv-3.* .venv-on-* .venv-client-3.* .venv-client2-3.* build dist .mypy_cache .pytest_cache .ruff_cache \
	  .import_linter_cache .hypothesis *.egg-info .venv-newest .venv-sdk .venv-coverage
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(UV_READY):
	@python=$$($(FIND_PYTHON)); echo "uv $(UV_VERSION) with $$python"; \
	  $$python -m venv --clear .venv-uv; \
	  .venv-uv/bin/python -m pip install -qq --disable-pip-version-check "uv==$(UV_VERSION)"; touch $@

# An editable install links each file, so it is repeated when a file is added or removed.
build/sources.list: FORCE
	@mkdir -p $(@D); find $(PACKAGES) -type f -not -path '*/__pycache__/*' | LC_ALL=C sort >$@.$$$$; \
	  if cmp -s $@.$$$$ $@; then rm $@.$$$$; else mv $@.$$$$ $@; fi

# The interpreter to build with: PYTHON if set, else that of .venv.
build/interpreter: FORCE
	@mkdir -p $(@D); python=$$($(FIND_PYTHON) $(BIN)/python); python=$$(readlink -f "$$python"); \
	  [ -f $@ ] && [ "$$(<$@)" = "$$python" ] || echo "$$python" >$@

$(VENV)/.installed: pyproject.toml uv.lock build/sources.list build/interpreter | $(UV_READY)
	@python=$$(<build/interpreter); \
	  has=$$(PYTHON=$(BIN)/python $(FIND_PYTHON) 2>/dev/null || true); \
	  if [ -e $(VENV) ] && [ "$$(readlink -f "$$has")" != "$$python" ]; then \
	    echo "$(VENV) is made again, with $$python"; rm -rf $(VENV); fi; \
	  $(UV) sync -q --frozen --inexact --python "$$python" --reinstall-package flashpool; touch $@

FORCE:

# Everything a newcomer or a developer runs. `make` alone lists the targets.
PYTHON ?= python3
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Bytecode is kept, whatever the environment says: else every process of a test reads torch from source.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install test test-slow test-all demo bench lint types docs release format clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@echo "Installing dynroute and its development tools into $(VENV) (once; about a minute)"
	$(PYTHON) -m venv $(VENV)
	@{ $(BIN)/python -m pip install --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'; \
		echo "status $$?"; } | { count=0; while read -r first name rest; do case "$$first $$name" in \
		"Collecting "*) count=$$((count + 1)); printf '\r\033[K  package %d: %s' "$$count" "$$name" ;; \
		"Installing collected") printf '\r\033[K  unpacking them ...\n' ;; \
		"status "*) exit "$$name" ;; esac; done; }
	@# Many processes import these at once; without their bytecode each would compile them. What fails, tests will tell.
	@echo "  compiling the largest of them ..."; for packages in "torch._dynamo, torch.distributed.fsdp, hypothesis" \
		"ray, metaworld, scipy.stats, sklearn.manifold, matplotlib.figure, sphinx.application, stable_baselines3"; do \
		$(BIN)/python -c "import $$packages" 2> /dev/null & done; wait
	@touch $@

install: $(READY) ## Make an environment with everything in .venv; source .venv/bin/activate enters it
	@echo "dynroute is installed; type: source $(VENV)/bin/activate"

test: $(READY) ## Run the tests, but for the slow ones
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

# Two more processes than cores, since many of these tests wait for others to start or to end; each gets few at a time, and
# those of a group all, since some take a minute. Only files that have such tests are read, since each process reads them
# all, and those of the long ones come first.
test-slow: $(READY) ## Run the slow tests: networks that learn or compile, processes that are killed, clusters
	$(BIN)/python -m pytest -n $$($(BIN)/python -c 'import os; print(2 + os.cpu_count())') --dist loadgroup \
		-m slow $$(grep -rl --include='test_*.py' 'mark\.slow' tests | sort -r)

test-all: test test-slow ## Run all tests

demo: $(READY) ## Imitate Meta-World's scripted policies, small and then at full size, and write a page about both
	$(BIN)/dynroute imitate --preset quick --method d2r --benchmark MT10 --workers 2 --demonstrations 10 \
		--cloning-steps 1000 --final-episodes 10 --run demo/small --resume
	$(BIN)/dynroute imitate --method d2r --benchmark MT10 --workers 2 --run demo/full --resume
	$(BIN)/dynroute report demo/small demo/full --output demo/report.html
	@echo "Open file://$(CURDIR)/demo/report.html in a browser."
	@echo "Next, SAC goes on from there for some minutes:"
	@echo "  $(BIN)/dynroute train --preset refine --method d2r --benchmark MT10 --workers 2 \\"
	@echo "      --warm-start demo/full --run demo/sac"

bench: $(READY) ## Time every case and write the table, the JSON file and the curves to benchmarks/results
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.sac
	$(BIN)/python -m benchmarks.environments

lint: $(READY) ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## Check types
	$(BIN)/mypy

# In one process, so that torch and the packages are imported once; beside other work, idle threads would spin.
docs: export OMP_NUM_THREADS := 1
docs: $(READY) ## Build the documentation and run its examples
	$(BIN)/python -c "import sys; from sphinx.cmd.build import main; \
		build = '-n -W --keep-going -q -d docs/_build/read docs docs/_build/{0} -b {0}'; \
		sys.exit(any(main(build.format(name).split()) for name in ('html', 'coverage', 'doctest')))"
	@echo "The documentation is docs/_build/html/index.html"

release: $(READY) ## Build the sdist and the wheel into dist, and check both
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	DYNROUTE_DIST=dist $(BIN)/python -m pytest -q tests/house/test_wheel.py
	@echo "dist holds what was checked:"; ls dist
	@! grep -q "example.org" pyproject.toml || echo "Before an upload, put the address of the repository into pyproject.toml."

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove everything that was built, the environment included
	rm -rf $(VENV) build dist docs/_build docs/api/generated demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two commands do everything on a fresh machine: `make serve` and `make test`. Both install into .venv first.

PYTHON ?= python3
PORT ?= 8080
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: install serve up test test-images lint bench bench-peers bench-policy results settings-page lock clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[ray,dev]"
	touch $@

install-deploy: $(STAMP)-deploy

$(STAMP)-deploy: $(STAMP)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[deploy]"
	touch $@

serve: install  ## the Ray Serve application with the demo fraud model
	$(VENV)/bin/tabpfn-serve serve --port $(PORT)

up: install  ## the same application under uvicorn, without Ray
	$(VENV)/bin/tabpfn-serve up --port $(PORT)

# Test files run side by side, each whole in one process: most wait for a server of their own to start or to stop. More
# workers take a GiB each. One thread for each, or torch's would wait for each other's cores.
TEST_WORKERS := 2

# CI measures the branch coverage of serve/, child processes included: make test COVERAGE=--cov=serve
COVERAGE :=

test: install-deploy  ## every test; with COVERAGE=--cov=serve, coverage must reach fail_under in pyproject.toml
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(TEST_WORKERS) --dist loadfile $(COVERAGE)

# Options of scripts/build-image, for a machine behind a package mirror: make test-images BUILD_OPTIONS="--ca FILE"
BUILD_OPTIONS :=

test-images: install  ## build the CPU image, then run it as docs/containers.md says; Docker, or buildah and podman
	scripts/build-image cpu --name tabpfn-serve:test $(BUILD_OPTIONS)
	TEST_IMAGE=tabpfn-serve:test $(VENV)/bin/python -m pytest -s -v tests/containers

lint: install-deploy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

synth: install-deploy  ## the CloudFormation templates of every stage, linted; offline, needs node
	$(VENV)/bin/python -m deployment.app
	$(VENV)/bin/cfn-lint --config-file deployment/cfnlint.yaml -- deployment/templates/*/*.json
	$(VENV)/bin/python -m deployment.policies deployment/templates/*/*.json

# Benchmarks write into a folder that git ignores; only `make results` publishes.
OUT := benchmarks/out

bench: install  ## the engine in one process, then the demo server under load up to its knee; about six minutes
	$(VENV)/bin/python -m benchmarks.offline.engine --precision float32 auto --threads 2 --json $(OUT)/offline-engine.json --plot $(OUT)/offline-engine.png
	$(VENV)/bin/python -m benchmarks.online.demo --edge serve --rate 20 40 80 160 240 480 --until-knee --duration 20 --json $(OUT)/online-load.json --plot $(OUT)/online-load.png

bench-peers: install  ## the same model behind other servers; about 45 minutes on an otherwise quiet machine
	$(VENV)/bin/python -m benchmarks.peers --json $(OUT)/peers.json --plot $(OUT)/peers.png

bench-policy: install  ## the batching policy and its peers' under a virtual clock; about three minutes
	$(VENV)/bin/python -m benchmarks.simulation --json $(OUT)/simulation.json --plot $(OUT)/simulation.png

# Runs to publish, by name: make results PUBLISH="offline-engine online-load"
PUBLISH :=

results: install  ## copy the runs named in PUBLISH from benchmarks/out, then write all plots and pages of results
	$(VENV)/bin/python -m benchmarks.publish $(PUBLISH)

settings-page: install  ## write the tables of docs/settings.md from the settings' descriptions
	$(VENV)/bin/python -m serve.settings.page docs/settings.md

lock: install-deploy  ## pin what is installed now; run it in a fresh environment after changing pyproject.toml
	$(VENV)/bin/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt

clean:
	rm -rf $(VENV)

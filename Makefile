# What can be done with this tree? `make` lists it; every target does its own set-up.
SHELL := /bin/bash
PYTHON ?= python3
PREFIX ?= /usr
DESTDIR ?=
VENV := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast lint proto bench bench-streaming bench-kernels bench-engine bench-nvme bench-hostile llamacpp deb install uninstall clean setup-demo \
  setup-test setup-lab setup-image lab-packages lab-kernel vm-test

help: ## lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup-demo:
	@$(PYTHON) scripts/setup.py demo

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

demo: setup-demo ## a real model answers while its weights stream from disk, under a ceiling smaller than the model
	@$(VENV)/python scripts/demo.py

test: setup-test setup-image ## all tests: the fast ones, the slow ones, then those in QEMU guests where QEMU is
	$(VENV)/python -m pytest -q -m "not slow and not vm"
	$(VENV)/python -m pytest -q -m slow
	$(VENV)/python -m pytest -q -m vm

vm-test: setup-image ## the hardware side and the service, in QEMU guests
	$(VENV)/python -m pytest -q -m vm

test-fast: setup-test ## the tests of less than a few seconds each
	$(VENV)/python -m pytest -q -m "not slow and not vm"

lint: setup-test ## ruff, mypy, import-linter, buf
	$(VENV)/python -m pytest -q tests/test_lint.py

proto: setup-test ## makes the committed protobuf code again from proto/
	$(VENV)/python scripts/generate_protos.py

bench: bench-streaming bench-kernels bench-engine bench-nvme bench-hostile ## every bench; tables here, figures in build/bench/*.json

bench-streaming: setup-test ## bandwidth while generating against the drive alone (build/bench/streaming.json)
	PYTHONPATH=tests $(VENV)/python -m bench.streaming

bench-kernels: setup-test llamacpp ## products of every type against a plain read of memory (build/bench/kernels.json)
	PYTHONPATH=tests $(VENV)/python -m bench.kernels

bench-engine: setup-test llamacpp ## decode, prefill and eight users beside llama.cpp (build/bench/engine.json)
	PYTHONPATH=tests $(VENV)/python -m bench.engine

bench-nvme: setup-lab ## our NVMe queues beside fio through the kernel's driver, in a guest (build/bench/nvme.json)
	PYTHONPATH=tests $(VENV)/python -m bench.nvme

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

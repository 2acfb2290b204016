# Everything happens in tools/: start.sh finds a Python, bootstrap.py prepares the environment of the stack that is
# named first, and then runs the rest of the line with that environment's Python.
# PYTHON=... chooses the Python to build an environment with: make lab PYTHON=python3.12

START = sh tools/start.sh

.PHONY: help lab test test-current test-avx2 test-current-avx2 run bench bench-generate bench-trainer sweep sweep-current soak soak-current doctor clean
.DEFAULT_GOAL := help

help:
	@echo "make lab           open the course in JupyterLab (first time: installs the guide stack into .venv)"
	@echo "make test          ruff, the unit tests, and every notebook in fast mode, on the guide stack"
	@echo "make run           run every notebook at full size and write readable pages to build/"
	@echo "make bench         every recipe and peer on BERT-base: times, ratios, mixed lengths, model families, answers (an hour)"
	@echo "make bench-generate text generation by every recipe, and llama.cpp where it is installed: times, answers, targets (half an hour)"
	@echo "make bench-trainer the whole run_qa flow, transformers' own Trainer against ours (ten minutes)"
	@echo "make sweep         every architecture that transformers has for thirteen tasks, by four recipes: right, or refused and why (an hour)"
	@echo "make test-current  the same as make test, on the current stack (.venv-current)"
	@echo "make test-avx2     those tests and notebooks that depend on the CPU, with this one held back to AVX2"
	@echo "make test-current-avx2   the same on the current stack"
	@echo "make sweep-current the same as make sweep, on the current stack"
	@echo "make soak          tracing, preparing and calling in 8 threads at once while another one trains (a quarter of an hour)"
	@echo "make soak-current  the same as make soak, on the current stack"
	@echo "make doctor        what this machine can do, and whether the installed versions fit together"
	@echo "make clean         remove both environments and build/"
	@echo "PYTHON=python3.12  after any of them: the Python to build the environment with (3.10 to 3.13)"

lab:
	@$(START) guide tools/lab.py

test:
	@$(START) guide tools/check.py

test-avx2:
	@$(START) guide tools/check.py --avx2

run:
	@$(START) guide tools/run_notebooks.py

bench:
	@$(START) guide tools/bench.py

bench-generate:
	@$(START) current tools/bench_generate.py

bench-trainer:
	@$(START) guide tools/bench_trainer.py

sweep:
	@$(START) guide tools/sweep.py

sweep-current:
	@$(START) current tools/sweep.py

soak:
	@$(START) guide tools/soak.py

soak-current:
	@$(START) current tools/soak.py

test-current:
	@$(START) current tools/check.py

test-current-avx2:
	@$(START) current tools/check.py --avx2

doctor:
	@$(START) guide -m cpuinfer_helpers doctor

clean:
	rm -rf .venv .venv-current .venv.lock .venv-current.lock .state build .pytest_cache .ruff_cache

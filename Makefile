# `make quickstart` and `make test` set up what they need (.venv, once) and do their job.
PY := .venv/bin/python
CXX_SOURCES = $(shell find csrc tests/ops -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: quickstart test setup lint format sanitize benchmark wheels matrix docs

quickstart: setup
	$(PY) tools/quickstart.py $(ARGS)

test: setup lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist worksteal $(ARGS)

setup:
	@tools/setup.sh

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(PY) -m mypy

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	.venv/bin/clang-format -i $(CXX_SOURCES)

# The tests of the compiled operators under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: setup
	tools/sanitize.sh $(ARGS)

benchmark: setup
	$(PY) tools/benchmark_roi_align.py $(ARGS)

# One wheel for this platform, in dist/; TORCH="2.11 2.14": for these instead of the one in .venv.
wheels: setup
	tools/build_wheels.sh $(TORCH)

# The legs of the test matrix, by default all; LEGS="wheel oldest".
matrix: setup
	tools/test_matrix.sh $(LEGS)

# The documentation as a site in output/site, without warnings and without the network.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

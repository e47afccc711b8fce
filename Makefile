# make demo        convert and run two real models, then a chat (a few minutes; does all set-up itself)
# make check       everything that must hold: format, lint, types, tests, sanitizers
# make check-full  the same with the exhaustive sweeps
# make wheel       dist/mxort-*.whl, for any Linux of glibc 2.28 and later
# make pipelines   docs/pipelines.md, each library in an environment of its own
# make bench       measure operators and models beside other libraries' and write docs/performance.md (ten minutes)
# make accuracy    measure the conversions on two models and write docs/accuracy.md's tables (hours; resumes)
# make clean       remove what the above made
PYTHON := .venv/bin/python
# onnxruntime 1.31 reports usage on Linux unless told not to.
export ORT_DISABLE_TELEMETRY := 1
SOURCES := $(shell find ep cmake -type f 2>/dev/null) CMakeLists.txt pyproject.toml scripts/setup.sh
CXX_FILES := $(shell find ep tests samples -name '*.cc' -o -name '*.h' -o -name '*.hip' 2>/dev/null)
OTHER_ONNXRUNTIMES := 1.22.1 1.24.4 1.32.0

.PHONY: demo check check-full wheel wheel-test pipelines bench accuracy clean lint test cpp-test provider-programs sanitize format hipsim

demo: build/.demo
	$(PYTHON) samples/demo.py
	$(PYTHON) samples/chat.py

check: lint cpp-test test wheel-test sanitize

check-full: PYTEST_MARKS :=
check-full: check

PYTEST_MARKS = -m 'not slow'

# Without site's .pth files: the editable installation's finder would come before build/view.
SITE = $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
LINT_IMPORTS = PYTHONPATH=.:$(SITE) ../../$(PYTHON) -S -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'
# With the samples' libraries, whose types mypy asks for in tools/accuracy.
lint: build/.demo
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/clang-format --dry-run --Werror $(CXX_FILES)
	scripts/view.sh
	cd build/view && ../../.venv/bin/mypy --config-file ../../pyproject.toml
	cd build/view && $(LINT_IMPORTS) --config ../../pyproject.toml --no-logo

# A test file belongs to one process; several at once, but not so many that memory gets short.
PYTEST = $(PYTHON) -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_MARKS)
test: build/.demo $(OTHER_ONNXRUNTIMES:%=build/ort/%) provider-programs hipsim
	$(PYTEST) --durations=10

CMAKE = .venv/bin/cmake -S . -G Ninja -Dpybind11_DIR=$$($(PYTHON) -m pybind11 --cmakedir) \
	-DPython_EXECUTABLE=$(abspath $(PYTHON)) -DMXORT_TESTS=ON

# The simulated HIP runtime, and the kernels that build/.dev compiled.
HIPSIM = MXORT_HIP_LIBRARY=$(abspath build/hipsim/libamdhip64.so.7) MXORT_CODE_OBJECTS=$(abspath build/cmake/hip)
hipsim: build/.dev
	cd tests && ../$(PYTHON) -c 'from hipsim import harness; harness.library_path()'

# In the folder of the editable build: what is compiled there is not compiled again.
cpp-test: build/.dev hipsim
	$(CMAKE) -B build/cmake >/dev/null
	.venv/bin/cmake --build build/cmake
	$(HIPSIM) .venv/bin/ctest --test-dir build/cmake --output-on-failure

# What tests/provider run, which build it themselves where cpp-test did not.
provider-programs: build/.dev
	@$(CMAKE) -B build/cmake >/dev/null
	@.venv/bin/cmake --build build/cmake --target toy_ep test_unload

# The kernel, operator and execution provider tests once more with AddressSanitizer and UndefinedBehaviorSanitizer (here
# the kernels of AMX and AVX-VNNI run too: MXORT_EMULATE), and the threads' tests with ThreadSanitizer. Python itself is
# not instrumented, so the runtimes are preloaded, and the leaks that Python leaves at exit are not reported;
# test_unload, a program without Python, reports its own.
sanitize: build/.dev hipsim
	$(CMAKE) -B build/sanitize -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMXORT_SANITIZE=address,undefined \
	  -DMXORT_EMULATE=ON -DMXORT_HIP=OFF >/dev/null
	.venv/bin/cmake --build build/sanitize
	$(HIPSIM) .venv/bin/ctest --test-dir build/sanitize --output-on-failure
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 MXORT_TEST_LIBRARIES=build/sanitize $(HIPSIM) \
	  $(PYTEST) --dist worksteal -q -p no:cacheprovider tests/test_formats.py tests/test_scales.py \
	  tests/quantize/test_rtn.py tests/quantize/test_panels.py \
	  tests/kernels tests/ops tests/provider/test_unload.py tests/provider/test_faults.py tests/provider/test_copies.py
	$(CMAKE) -B build/tsan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DMXORT_SANITIZE=thread -DMXORT_HIP=OFF >/dev/null
	.venv/bin/cmake --build build/tsan --target test_threads test_device
	build/tsan/test_threads
	HIPSIM_ADDRESSES=0x400000000 $(HIPSIM) build/tsan/test_device

# WHEEL_PYTHONS="python3.12 python3.13" builds and tests for those instead of the environment's own.
wheel: dist/.built
dist/.built: build/.wheel $(SOURCES) $(shell find mxort converters -name '*.py' -o -name '*.jinja' -o -name '*.html') scripts/wheel.sh
	scripts/wheel.sh $(WHEEL_PYTHONS)
	@touch $@

wheel-test: dist/.built $(OTHER_ONNXRUNTIMES:%=build/ort/%)
	scripts/wheel_test.sh $(WHEEL_PYTHONS)

# Those of onnxruntime-genai are in `make test`. PIPELINES="optimum" runs one.
PIPELINES = optimum sentence_transformers olive triton compressed_tensors ray onnx_genai_server guidellm
pipelines: dist/.built hipsim
	scripts/pipelines.sh $(PIPELINES)

bench: build/.bench
	$(PYTHON) samples/models.py minilm smollm2
	$(PYTHON) -m tools.bench bounds --fresh --write docs/performance.md

accuracy: build/.demo
	$(PYTHON) -m tools.accuracy

format: build/.dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
	.venv/bin/clang-format -i $(CXX_FILES)

build/.dev: $(SOURCES)
	scripts/setup.sh dev
	@touch $@

build/.demo: build/.dev
	scripts/setup.sh dev samples
	@touch $@

# The libraries beside which `make bench` measures, one by one: one that cannot be installed here is a row less.
# llama-cpp-python is compiled (ten minutes, once).
build/.bench: build/.demo
	for peer in $(call extra,bench); do \
	  $(PYTHON) -m pip --disable-pip-version-check -q install "$$peer" || echo "bench: without $$peer" >&2; done
	@touch $@

build/.wheel: build/.dev
	$(PYTHON) -m pip --disable-pip-version-check -q install $(call extra,wheel)
	@touch $@

# The requirements of an extra of pyproject.toml.
extra = $(shell sed -n '/^$(1) = \[/,/^\]/s/^  "\(.*\)",$$/\1/p' pyproject.toml)

# Other releases of onnxruntime beside the one of the environment; tests run them with PYTHONPATH.
build/ort/%: | build/.dev
	$(PYTHON) -m pip --disable-pip-version-check -q install --no-deps --target $@.tmp onnxruntime==$*
	mv $@.tmp $@

clean:
	rm -rf build dist .venv

#!/bin/bash
# Builds csrc/ with AddressSanitizer and UndefinedBehaviorSanitizer outside the source tree, and runs the tests of
# the compiled operators, and of the CUDA operators on their emulated device, under them.
# Usage: tools/sanitize.sh [pytest arguments; default: those tests of tests/ops]
# PYTHON: the interpreter with torch and pytest (default: .venv/bin/python). BUILD_DIR: kept between runs.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
BUILD_DIR=${BUILD_DIR:-${TMPDIR:-/tmp}/mrcnn_ext_sanitize_$(id -u)}
mkdir -p "$BUILD_DIR/mrcnn_ext"

# A copy of the package that the sanitized library joins: the one in the source tree stays as it is.
rm -rf "$BUILD_DIR/mrcnn_ext" && cp -rp mrcnn_ext "$BUILD_DIR/mrcnn_ext" && rm -f "$BUILD_DIR"/mrcnn_ext/_C_torch_*
rm -rf "$BUILD_DIR/csrc" && cp -rp csrc "$BUILD_DIR/csrc"
rm -rf "$BUILD_DIR/tests" && cp -rp tests "$BUILD_DIR/tests" && cp pyproject.toml "$BUILD_DIR"
cp -r setup.py configs "$BUILD_DIR"

FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"
(
  cd "$BUILD_DIR"
  PYTHON=$("$OLDPWD/$PYTHON" -c 'import sys; print(sys.executable)' 2>/dev/null || command -v "$PYTHON")
  # setup.py leaves the optimization to an -O in CFLAGS; -O3 under the sanitizers compiles several times longer.
  CFLAGS="$FLAGS" CXXFLAGS="$FLAGS" LDFLAGS="-fsanitize=address,undefined" FORCE_CUDA=0 \
    "$PYTHON" setup.py -q build_ext --inplace --build-temp "$BUILD_DIR/build"
  ls mrcnn_ext/_C_torch_*.so >/dev/null || { echo "the sanitized library was not built" >&2; exit 1; }

  # Leaks are not looked for: the interpreter and torch never free what they hold at exit.
  # libstdc++ is preloaded too, so that the sanitizer finds the C++ exceptions it intercepts.
  export LD_PRELOAD="$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so):$(g++ -print-file-name=libstdc++.so.6)"
  export ASAN_OPTIONS=detect_leaks=0:abort_on_error=0 UBSAN_OPTIONS=print_stacktrace=1
  export MRCNN_EXT_BACKEND=compiled PYTHONPATH="$BUILD_DIR" OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}
  # tests/ops/emulated_cuda.py compiles the emulated device with these.
  export CXXFLAGS="$FLAGS"
  # All but those of the other backends, and those in which PyTorch's own tracing takes most of the time.
  OTHERS="[eager or -eager or [torchvision or -torchvision or opcheck or compile_without"
  [ $# -gt 0 ] || set -- tests/ops -k "not ($OTHERS)"
  "$PYTHON" -m pytest -q -p no:cacheprovider "$@"
)

#!/usr/bin/env bash
# The test matrix, leg by leg: what the tests of the checkout in .venv do not show.
#
#   tools/test_matrix.sh [LEG...]      by default every leg; the exit status is 1 if one failed
#
#   no-compiler    built where there is no compiler: says so, installs, and runs on the eager path
#   no-detectron2  the tests with detectron2 out of sight; none but those marked `detectron2` may be skipped for it
#   oldest         the oldest Python and PyTorch: OLDEST (python3.10) and TORCH_OLDEST (2.11)
#   newest         the newest Python here that PyTorch has wheels for, and the newest PyTorch: NEWEST, TORCH_NEWEST
#   wheel          dist/*.whl (`make wheels`) in a new environment, used with no compiler on the PATH
#   cuda-sources   csrc with its CUDA files, compiled by nvcc for ARCH (8.0)
#
# A leg whose interpreter or compiler is missing is named as skipped. Environments are kept under build/matrix (5.5 GB
# each with PyTorch). Variables:
#   TORCH_FROM  take PyTorch and what it needs from this site-packages folder in `wheel` and `newest`
#               instead of installing it: less of a test, and said so
#   WHEEL       install this wheel in `oldest` and `newest` instead of compiling the checkout
#   TESTS       the tests of the legs with an environment (tests/ops tests/layers tests/integrations)
#   ARGS        more arguments for pytest
set -uo pipefail
cd "$(dirname "$0")/.."
ROOT=$PWD
WORK=$ROOT/build/matrix
PY=$ROOT/.venv/bin/python
LEGS="no-compiler no-detectron2 oldest newest wheel cuda-sources"
TESTS=${TESTS:-tests/ops tests/layers tests/integrations}
SKIPPED=77
mkdir -p "$WORK"

skip() { echo "$*"; exit $SKIPPED; }

# Leg's interpreters look at the installed package only: from a folder that has the tests and no package.
tests_beside() { # FOLDER
  mkdir -p "$1"
  rm -rf "$1/tests"
  cp -r tests pyproject.toml "$1"
}

# pip of an interpreter, quiet
pip_of() { local python=$1 && shift && "$python" -m pip --disable-pip-version-check install --quiet "$@"; }

# A PATH on which nothing compiles: the environment's own programs and the tests' few (git, env, uname, ...).
path_without_compilers() { # FOLDER
  rm -rf "$1" && mkdir -p "$1"
  for name in bash sh env uname cat ls cp mv rm mkdir chmod dirname basename sed grep git nice sleep ldconfig; do
    if command -v $name >/dev/null; then ln -s "$(command -v $name)" "$1/$name"; fi
  done
}

leg_no_compiler() {
  local folder=$WORK/no-compiler
  rm -rf "$folder" && mkdir -p "$folder"
  path_without_compilers "$folder/bin"
  git ls-files -z setup.py pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md mrcnn_ext mrcnn_ext_command.py configs csrc |
    xargs -0 cp --parents -t "$folder" || return 1
  (cd "$folder" && env -u CC -u CXX PATH="$folder/bin" "$PY" setup.py --quiet build --build-lib installed) 2>&1 |
    tee "$folder/build.log" | tail -n 3
  grep -q "no C++ compiler" "$folder/build.log" || { echo "the build does not say that there is no compiler"; return 1; }
  tests_beside "$folder/run"
  cd "$folder/run" || return 1
  export PYTHONPATH=$folder/installed PATH=$folder/bin MRCNN_EXT_BACKEND=
  unset CC CXX
  "$PY" "$ROOT/tools/check_install.py" --eager --no-compiler || return 1
  "$PY" -m pytest -q -p no:cacheprovider tests/ops tests/layers -k "not emulated" ${ARGS:-}
}

leg_no_detectron2() {
  local folder=$WORK/no-detectron2
  rm -rf "$folder" && mkdir -p "$folder"
  cat >"$folder/sitecustomize.py" <<'PYTHON'
"""detectron2 is not to be found, in this process and in those that it starts."""
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = classmethod(
    lambda cls, name, *args: None if name.partition(".")[0] == "detectron2" else find_spec(name, *args)
)
PYTHON
  # Without the marked ones, as many tests are there as with detectron2: every test that needs it carries the marker.
  count() { "$PY" -m pytest --collect-only -q -m "not slow and not detectron2" 2>/dev/null | grep -c '::'; }
  local with without
  with=$(count)
  without=$(PYTHONPATH=$folder count)
  echo "tests not marked detectron2: $with with it, $without without it"
  [ "$with" = "$without" ] && [ "$with" -gt 0 ] || { echo "a test needs detectron2 and is not marked so"; return 1; }
  PYTHONPATH=$folder "$PY" -m pytest -q -m "not slow" -n "${JOBS:-2}" --dist worksteal ${ARGS:-}
}

# environment_leg FOLDER PYTHON TORCH TORCHVISION: the tests in an environment of its own, made once
environment_leg() {
  local folder=$WORK/$1 python=$2 torch=$3 torchvision=$4
  local env=$folder/env/bin/python
  if [ "$(cat "$folder/env/.made_for" 2>/dev/null)" != "$python $torch $torchvision ${TORCH_FROM:-}" ]; then
    rm -rf "$folder" && mkdir -p "$folder"
    "$python" -m venv "$folder/env" || return 1
    if [ -n "${TORCH_FROM:-}" ]; then
      echo "PyTorch is taken from $TORCH_FROM"
      echo "$TORCH_FROM" >"$("$env" -c 'import site; print(site.getsitepackages()[0])')/torch_from.pth"
    else
      pip_of "$env" "torch$torch" "torchvision$torchvision" || return 1
    fi
    pip_of "$env" "setuptools>=77" wheel ninja pytest hypothesis || return 1
    echo "$python $torch $torchvision ${TORCH_FROM:-}" >"$folder/env/.made_for"
  fi
  if [ -n "${WHEEL:-}" ]; then
    pip_of "$env" --force-reinstall --no-deps "$WHEEL" && pip_of "$env" "$WHEEL" || return 1
  else
    PATH=$folder/env/bin:$PATH pip_of "$env" --no-build-isolation . || return 1
  fi
  tests_beside "$folder/run"
  cd "$folder/run" || return 1
  "$env" "$ROOT/tools/check_install.py" --compiled || return 1
  "$env" -m pytest -q -p no:cacheprovider $TESTS -k "not emulated" ${ARGS:-}
}

leg_oldest() {
  local python torch=${TORCH_OLDEST:-2.11}
  python=$(command -v "${OLDEST:-python3.10}") && "$python" -c "" 2>/dev/null || skip "no ${OLDEST:-python3.10} (set OLDEST)"
  # torchvision 0.N is torch 2.(N - 15)'s
  (unset TORCH_FROM && environment_leg oldest "$python" "==$torch.*" "==0.$((${torch#2.} + 15)).*")
}

leg_newest() {
  local python
  if [ -n "${NEWEST:-}" ]; then python=$(command -v "$NEWEST") || skip "no $NEWEST"; else
    for name in python3.14 python3.13 python3.12; do
      python=$(command -v $name) && "$python" -c "" 2>/dev/null && break
      python=
    done
    [ -n "$python" ] || skip "no Python newer than 3.11 (set NEWEST)"
    [ "$(basename "$python")" = python3.14 ] || echo "no python3.14 here: $("$python" --version)"
  fi
  environment_leg newest "$python" "${TORCH_NEWEST:-}" ""
}

leg_wheel() {
  local wheels=(dist/*abi3*.whl) folder=$WORK/wheel
  [ -e "${wheels[0]}" ] && [ ${#wheels[@]} = 1 ] || skip "dist/ holds no wheel, or more than one: make wheels"
  local wheel=$ROOT/${wheels[0]} env=$folder/env/bin/python
  rm -rf "$folder" && mkdir -p "$folder"
  "${PYTHON:-python3}" -m venv "$folder/env" || return 1
  path_without_compilers "$folder/bin"
  if [ -n "${TORCH_FROM:-}" ]; then
    echo "PyTorch is taken from $TORCH_FROM"
    echo "$TORCH_FROM" >"$("$env" -c 'import site; print(site.getsitepackages()[0])')/torch_from.pth"
  fi
  export PATH=$folder/env/bin:$folder/bin
  unset CC CXX PYTHONPATH
  pip_of "$env" "$wheel" && pip_of "$env" pytest hypothesis || return 1
  tests_beside "$folder/run"
  cd "$folder/run" || return 1
  "$env" "$ROOT/tools/check_install.py" --compiled --no-compiler || return 1
  "$env" -m pytest -q -p no:cacheprovider $TESTS -k "not emulated and not compile and not inductor" ${ARGS:-}
}

leg_cuda_sources() {
  command -v nvcc >/dev/null || skip "no nvcc"
  local folder=$WORK/cuda-sources
  mkdir -p "$folder"
  nvcc --version | tail -n 1
  PATH=$ROOT/.venv/bin:$PATH FORCE_CUDA=1 TORCH_CUDA_ARCH_LIST=${ARCH:-8.0} "$PY" setup.py --quiet build_ext \
    --build-lib "$folder/lib" --build-temp "$folder/objects" || return 1
  ls -l "$folder"/lib/mrcnn_ext/_C_torch_*.so || return 1
  "$PY" - "$folder"/lib/mrcnn_ext/_C_torch_*.so <<'PYTHON'
import sys
import torch

torch.ops.load_library(sys.argv[1])
for name in ("roi_align", "roi_align_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mrcnn_ext::{name}", "CUDA"), name
print("the CUDA operators are registered")
PYTHON
}

[ $# -gt 0 ] || set -- $LEGS
for leg in "$@"; do
  case " $LEGS " in *" $leg "*) ;; *) echo "test_matrix: no leg $leg; there are: $LEGS" >&2; exit 2 ;; esac
done
summary=() failed=0
for leg in "$@"; do
  echo "=== $leg"
  began=$SECONDS log=$WORK/$leg.log
  ("leg_${leg//-/_}") 2>&1 | tee "$log"
  code=${PIPESTATUS[0]}
  case $code in
    0) state=passed ;;
    "$SKIPPED") state="SKIPPED: $(tail -n 1 "$log")" ;;
    *) state="FAILED ($code)" failed=1 ;;
  esac
  summary+=("$(printf '%-14s %5d s  %s' "$leg" $((SECONDS - began)) "$state")")
done
printf '%s\n' "=== the legs" "${summary[@]}"
exit $failed

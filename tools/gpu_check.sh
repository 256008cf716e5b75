#!/bin/bash
# Everything there is to see of mrcnn_ext on a GPU, in under ten minutes: builds the operators for the GPU it finds,
# runs their tests on it, compute-sanitizer's four tools on some of them, RoI pooling beside torchvision and
# detectron2's ROIPooler with the outputs compared, inference, and training steps with deterministic algorithms.
#
#   tools/gpu_check.sh [OUTPUT, default output/gpu_check]
#
# Prints a table and writes OUTPUT/summary.csv, and each step's output to OUTPUT/<step>.log. A step that has passed is
# not run again by the next call with the same OUTPUT and the same sources. Exit status: 0 if all steps passed, 1 if one
# failed, 2 without a GPU: then the operators are only built, for every architecture of setup.py.
#
# PYTHON: an interpreter with torch, pytest and detectron2 (default: .venv/bin/python); nvcc has to be in PATH.
# BUILD_DIR: where the package is built, outside of the source tree; kept between runs.
set -uo pipefail
cd "$(dirname "$0")/.."
OUTPUT=$(realpath -m "${1:-output/gpu_check}")
PYTHON=$(command -v "${PYTHON:-.venv/bin/python}") || { echo "there is no ${PYTHON:-.venv/bin/python}: make setup" >&2; exit 1; }
PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON")
BUILD_DIR=${BUILD_DIR:-${TMPDIR:-/tmp}/mrcnn_ext_gpu_check_$(id -u)}
mkdir -p "$OUTPUT" "$BUILD_DIR"
export PATH="$(dirname "$PYTHON"):$PATH"  # ninja

GPU=$("$PYTHON" -c 'import torch
if torch.cuda.is_available():
    print("%d.%d" % torch.cuda.get_device_capability(), torch.cuda.get_device_name())' 2>/dev/null)
SOURCES=$(git ls-files -z csrc mrcnn_ext tests tools setup.py 2>/dev/null | xargs -0 cat 2>/dev/null | sha256sum | cut -c1-16)
STAMP="$SOURCES ${GPU:-none}"

SUMMARY=$OUTPUT/summary.csv
echo "step,result,seconds" >"$SUMMARY"
FAILED=0
SANITIZERS=()
# step NAME SECONDS COMMAND...: runs the command in the built package unless it has passed before.
step() {
  local name=$1 limit=$2 began result
  shift 2
  if [ "$(cat "$OUTPUT/$name.passed" 2>/dev/null)" = "$STAMP" ]; then
    result="passed before" began=$SECONDS
  else
    began=$SECONDS
    rm -f "$OUTPUT/$name.passed"
    if (cd "$BUILD_DIR/package" && timeout "$limit" "$@") >"$OUTPUT/$name.log" 2>&1; then
      result=passed
      echo "$STAMP" >"$OUTPUT/$name.passed"
    else
      local status=$?
      [ $status = 5 ] && status="5: no such tests"
      result="FAILED ($([ "$status" = 124 ] && echo "over $limit s" || echo "status $status"); $OUTPUT/$name.log)"
      FAILED=1
    fi
  fi
  printf '%-22s %4d s  %s\n' "$name" $((SECONDS - began)) "$result"
  echo "$name,${result%% (*},$((SECONDS - began))" >>"$SUMMARY"
}

# The package as it is, with a library of its own: the one in the source tree stays as it is.
mkdir -p "$BUILD_DIR/package"
for part in mrcnn_ext csrc tests tools configs datasets setup.py pyproject.toml; do
  rm -rf "${BUILD_DIR:?}/package/$part.new" && cp -rp "$part" "$BUILD_DIR/package/$part.new"
  if [ $part = mrcnn_ext ]; then
    rm -f "$BUILD_DIR/package/$part.new"/_C_torch_*
    cp -p "$BUILD_DIR/package/$part"/_C_torch_* "$BUILD_DIR/package/$part.new/" 2>/dev/null
  fi
  rm -rf "${BUILD_DIR:?}/package/$part" && mv "$BUILD_DIR/package/$part.new" "$BUILD_DIR/package/$part"
done
export PYTHONPATH="$BUILD_DIR/package" FORCE_CUDA=1
[ -n "$GPU" ] && export TORCH_CUDA_ARCH_LIST=${GPU%% *}
echo "GPU: ${GPU:-none}"

step build 1800 bash -c 'rm -f mrcnn_ext/_C_torch_* && "$0" setup.py -q build_ext --inplace --build-temp ../objects && ls mrcnn_ext/_C_torch_*.so' "$PYTHON"
step registration 60 "$PYTHON" -c '
import torch
from mrcnn_ext.ops import _extension
assert _extension.is_available(), _extension._why_absent
for name in ("roi_align", "roi_align_backward"):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mrcnn_ext::{name}", "CUDA"), name
print("the CUDA operators are registered")'
if [ -z "$GPU" ]; then
  echo "There is no GPU: nothing else can be run. Summary: $SUMMARY"
  exit $((FAILED == 1 ? 1 : 2))
fi

export MRCNN_EXT_BACKEND=compiled CUBLAS_WORKSPACE_CONFIG=:4096:8
PYTEST=("$PYTHON" -m pytest -q -p no:cacheprovider)
step operator_tests 150 "${PYTEST[@]}" tests/ops/test_roi_align.py tests/ops/test_roi_align_op.py -k "cuda and compiled and not emulated"
step model_tests 60 "${PYTEST[@]}" tests/modeling/test_deterministic_training.py -k cuda
step accelerate_tests 90 "${PYTEST[@]}" tests/accel/test_on_cuda.py

step race 90 "$PYTHON" tools/benchmark_roi_align.py --device cuda --quick --output "$OUTPUT/race"
step race_targets 90 "$PYTHON" tools/benchmark_roi_align.py --device cuda --targets
step memory 60 "$PYTHON" -c '
import sys
import torch
from mrcnn_ext.benchmark import memory, roi_align, tables
rows = []
for direction in ("forward", "backward"):
    for layout in ("NHWC", "NCHW"):
        contest = roi_align.Contest(roi_align.Case(direction, layout, device="cuda"))
        row = {"direction": direction, "layout": layout}
        for name in ("ours", "torchvision", "detectron2"):
            run = getattr(contest, name)()
            if run is not None:
                run()
                row[f"{name}_MB"] = round(memory.peak_memory(run, contest.device) / 1e6, 1)
        rows.append(row)
        print(row)
tables.write_csv(rows, sys.argv[1])' "$OUTPUT/memory.csv"
step end_to_end 90 "$PYTHON" tools/benchmark_roi_align.py --device cuda --end-to-end --budget 5
step accelerated_models 120 "$PYTHON" tools/benchmark_model.py --device cuda --quick --budget 4 --output "$OUTPUT/model"

# The sanitizers, last and side by side: nothing is timed any more. PyTorch's caching allocator would hide what lies
# beyond a tensor. initcheck has to see PyTorch's own kernels too, or what they wrote looks unwritten; that is slow.
SANITIZER=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
SUBSET="cuda and compiled and (far_larger or not_finite or empty_inputs or keep_dtype_and_memory_format or same_bits)"
for tool in memcheck racecheck synccheck initcheck; do
  if [ $tool = initcheck ]; then
    kernels=() subset="cuda and compiled and same_bits and avg"
  else
    kernels=(--kernel-regex kns=mrcnn_ext) subset=$SUBSET
  fi
  (
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 step "sanitizer_$tool" 150 \
      "${SANITIZER:-compute-sanitizer}" --tool $tool --error-exitcode 9 "${kernels[@]}" "${PYTEST[@]}" tests/ops/test_roi_align.py -k "$subset"
    exit $FAILED
  ) &
  SANITIZERS+=($!)
done
for pid in "${SANITIZERS[@]}"; do wait "$pid" || FAILED=1; done

echo
grep -h -E 'met|MISSED' "$OUTPUT/race_targets.log" 2>/dev/null
echo "Summary: $SUMMARY"
exit $FAILED

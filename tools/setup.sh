#!/usr/bin/env bash
# Makes the virtual environment .venv that `make quickstart` and `make test` run in. Each step leaves a stamp that
# holds what it was done for, and is done again only when that changes.
#
#   PYTHON      the interpreter to make the environment with (default: python3; 3.10 to 3.14)
#   DETECTRON2  where detectron2 comes from: any pip requirement, URL or path (default: requirements-detectron2.txt)
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
pip=".venv/bin/python -m pip --disable-pip-version-check install --quiet"

# done_for STEP KEY: whether STEP's stamp holds KEY
done_for() { [ "$(cat ".venv/.$1" 2>/dev/null)" = "$2" ]; }
stamp() { echo "$2" >".venv/.$1"; }
hash_of() { cat "$@" | cksum; }

key=$(hash_of requirements.txt)
if ! done_for torch "$key"; then
  "$PYTHON" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' ||
    { echo "setup: $("$PYTHON" --version) found, 3.10 to 3.14 needed: set PYTHON=python3.12, say" >&2; exit 1; }
  echo "setup: PyTorch into .venv (about 5.5 GB, a few minutes)"
  [ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
  $pip -r requirements.txt
  # What was built for another PyTorch is built again, detectron2 from where it came.
  was=$(cat .venv/.detectron2 2>/dev/null || true)
  case $was in "given "*) DETECTRON2=${DETECTRON2:-${was#given }} ;; esac
  rm -f .venv/.detectron2 .venv/.package
  .venv/bin/python -m pip --disable-pip-version-check uninstall --quiet --yes detectron2 2>/dev/null
  stamp torch "$key"
fi

key=${DETECTRON2:-$(cat requirements-detectron2.txt)}
was=$(cat .venv/.detectron2 2>/dev/null || true)
if [ -n "${DETECTRON2:-}" ]; then want="given $key"; else
  # What an earlier run was given stays, a missing detectron2 too; the pinned one follows its pin.
  case $was in "given "* | missing) want=$was ;; *) want="pinned $key" ;; esac
fi
if [ "$was" != "$want" ]; then
  echo "setup: detectron2 from $key (built here, a few minutes)"
  # A path or a requirement on the command line, one argument; a server that does not answer is given up on. pip's
  # cache may hold a build for another PyTorch.
  if GIT_TERMINAL_PROMPT=0 GIT_HTTP_LOW_SPEED_LIMIT=1000 GIT_HTTP_LOW_SPEED_TIME=60 \
    timeout 1500 $pip --no-cache-dir --no-build-isolation "$key" 2>.venv/detectron2.log; then
    stamp detectron2 "$want"
  else
    stamp detectron2 missing
    tail -n 5 .venv/detectron2.log >&2
  fi
fi

key=$(hash_of setup.py pyproject.toml $(find csrc -type f | sort))
if ! done_for package "$key"; then
  echo "setup: mrcnn_ext, built in place"
  $pip --no-build-isolation --editable '.[dev]'
  stamp package "$key"
fi

if done_for detectron2 missing; then
  cat >&2 <<MESSAGE
**********************************************************************************************************
setup: detectron2 is NOT installed. Tried: $(cat requirements-detectron2.txt), or the DETECTRON2 then set
(pip's whole answer: .venv/detectron2.log). What needs it is skipped until it is there:
    make setup DETECTRON2=<a pip requirement, URL or path of a detectron2 checkout>
**********************************************************************************************************
MESSAGE
fi

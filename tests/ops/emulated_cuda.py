"""The CUDA operators of RoI pooling on an emulated device: built with the C++ compiler, loaded as one more backend.

The kernels and the code that launches them are those of csrc/roi_align/cuda; tests/ops/cuda_emulation has what stands
for the device. There are two builds: "emulated" rounds every product, "emulated_fused" fuses products into sums as
nvcc does by default. Built once per version of the sources, under build/.
"""

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch
from torch.utils import cpp_extension

from mrcnn_ext.ops import _roi_align_op

ROOT = Path(__file__).resolve().parents[2]
EMULATION = Path(__file__).resolve().parent / "cuda_emulation"
BUILDS = {"emulated": ["-ffp-contract=off"], "emulated_fused": ["-ffp-contract=fast", "-mfma"]}


def why_not(build: str) -> str | None:
    """Why this machine cannot have the build; None if it can."""
    if platform.system() != "Linux":
        return "the emulation of CUDA needs Linux"
    if shutil.which(cpp_extension.get_cxx_compiler()) is None:
        return "the emulation of CUDA needs a C++ compiler"
    if build == "emulated_fused" and " fma " not in Path("/proc/cpuinfo").read_text():
        return "this processor has no fused multiply-add"
    return None


def compile_emulation(build: str, csrc: Path = ROOT / "csrc") -> Path:
    """The shared library of one build, compiled unless there is one of the same sources and flags.

    Args:
        build: a key of `BUILDS`.
        csrc: the sources, those of a mutant say.
    """
    compiler = cpp_extension.get_cxx_compiler()
    includes = [EMULATION / "include", csrc, *cpp_extension.include_paths()]
    flags = [
        *("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique"),
        *shlex.split(os.environ.get("CXXFLAGS", "")),
    ]
    digest = hashlib.sha256(f"{compiler} {flags} {BUILDS} {torch.__version__}".encode())
    used = (csrc / "roi_align").rglob("*.*h"), EMULATION.rglob("*.h"), EMULATION.glob("*.cpp")
    for path in sorted(path for paths in used for path in paths):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "cuda_emulation" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)

    def make(target: Path, *arguments: str) -> Path:
        if not target.exists():
            unfinished = target.with_suffix(".unfinished")
            command = [
                compiler,
                *flags,
                *(f"-I{path}" for path in includes),
                *arguments,
                "-o",
                str(unfinished),
            ]
            # Preloaded sanitizers, of tools/sanitize.sh, are for the tests, not for the compiler.
            environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
            if done.returncode != 0:
                raise RuntimeError(f"the emulation of CUDA does not compile:\n{done.stderr[-4000:]}")
            unfinished.rename(target)
        return target

    with open(folder / "lock", "w") as lock:  # of several pytest workers, one compiles
        fcntl.flock(lock, fcntl.LOCK_EX)
        operators = make(folder / "operators.o", "-c", str(EMULATION / "operators.cpp"))
        kernels = make(
            folder / f"{build}.o",
            *BUILDS[build],
            f"-DEMULATED_NAME={build}",
            "-c",
            str(EMULATION / "kernels.cpp"),
        )
        libraries = [
            *(f"-L{path}" for path in cpp_extension.library_paths()),
            "-ltorch",
            "-ltorch_cpu",
            "-lc10",
        ]
        return make(folder / f"{build}.so", "-shared", str(operators), str(kernels), *libraries)


@cache
def load(build: str) -> None:
    """Makes `build` a backend of RoI pooling, with autograd and fake kernels as the others have."""
    torch.ops.load_library(compile_emulation(build))
    name = f"roi_align_{build}"
    torch.library.register_fake(f"mrcnn_ext::{name}", _roi_align_op._fake)
    torch.library.register_fake(f"mrcnn_ext::{name}_backward", _roi_align_op._fake_backward)
    _roi_align_op._register_autograd(name)
    _roi_align_op._forced_ops[build] = getattr(torch.ops.mrcnn_ext, name)

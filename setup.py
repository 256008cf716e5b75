"""Build of the compiled operators and packaging of the configs; everything else is in pyproject.toml.

Environment:
    FORCE_CUDA=1: compile the CUDA kernels although no GPU is visible (needs nvcc).
    TORCH_CUDA_ARCH_LIST: the GPU architectures to compile for, as in every PyTorch extension.
    CFLAGS: as for every extension; an -O in it replaces ours.
    MRCNN_EXT_COMPILE=0: do not compile; the package then runs on its eager PyTorch path. "prebuilt": pack the
        libraries that are in mrcnn_ext/ already (tools/build_wheels.sh).
"""

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup

ROOT = Path(__file__).parent
# The operators are loaded by torch: all that is used of Python is in its limited API of 3.10.
LIMITED_API = {"bdist_wheel": {"py_limited_api": "cp310"}}
HOW_TO_COMPILE = "install again with a C++17 compiler and `pip install --no-build-isolation .`"


def version():
    return re.search(r'__version__ = "(.+)"', (ROOT / "mrcnn_ext/__init__.py").read_text()).group(1)


def architectures(cuda):
    """The GPUs to compile for where none is visible, as TORCH_CUDA_ARCH_LIST; those of 2025 need CUDA 12.8."""
    version = tuple(int(part) for part in (cuda or "0").split(".")[:2])
    return "7.5;8.0;8.6;8.9;9.0" + (";10.0;12.0+PTX" if version >= (12, 8) else "+PTX")


class PrebuiltDistribution(Distribution):
    """A distribution whose libraries were built before: its wheel is for a platform."""

    def has_ext_modules(self):
        return True


def extension():
    """Returns setup()'s arguments for the compiled operators; none, after saying why, where they can't be built."""
    if os.environ.get("MRCNN_EXT_COMPILE") == "0":
        return {}
    if os.environ.get("MRCNN_EXT_COMPILE") == "prebuilt":
        return {"distclass": PrebuiltDistribution, "options": LIMITED_API}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        print(
            f"mrcnn_ext: torch is not importable while building: no compiled operators; {HOW_TO_COMPILE}",
            file=sys.stderr,
        )
        return {}
    compiler = cpp_extension.get_cxx_compiler()
    if shutil.which(compiler) is None:
        print(
            f"mrcnn_ext: no C++ compiler ({compiler}): no compiled operators; {HOW_TO_COMPILE}",
            file=sys.stderr,
        )
        return {}

    with_cuda = os.environ.get("FORCE_CUDA") == "1" or (torch.cuda.is_available() and cpp_extension.CUDA_HOME)
    patterns = ["*.cpp", "*.cu"] if with_cuda else ["*.cpp"]
    sources = sorted(str(path.relative_to(ROOT)) for p in patterns for path in ROOT.glob(f"csrc/**/{p}"))
    if not torch.cuda.is_available():
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architectures(torch.version.cuda))
    make = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    # No contraction: which of two tied samples wins must not depend on the instruction set.
    # ATen's parallel loops are templates: without OpenMP here they would run on one thread.
    openmp = ["-fopenmp"] if sys.platform == "linux" else []
    # torch puts these after CFLAGS, so that -O3 here would overrule an -O there.
    optimize = [] if re.search(r"(^|\s)-O", os.environ.get("CFLAGS", "")) else ["-O3"]
    # The library is for one minor version of torch, whose C++ interface changes with each: its name says so, and
    # ops/_extension.py loads the one of the torch that runs.
    name = "_C_torch_" + "_".join(torch.__version__.split(".")[:2])
    flags = {"cxx": [*optimize, "-ffp-contract=off", *openmp], "nvcc": ["-O3"]}
    return {
        "ext_modules": [
            make(
                f"mrcnn_ext.{name}",
                sources,
                include_dirs=[str(ROOT / "csrc")],
                extra_compile_args=flags,
                extra_link_args=openmp,
                py_limited_api=True,
            )
        ],
        "cmdclass": {"build_ext": cpp_extension.BuildExtension},
        "options": LIMITED_API,
    }


libraries = ["_C_torch_*"] if os.environ.get("MRCNN_EXT_COMPILE") == "prebuilt" else []
setup(
    version=version(),
    packages=[*find_packages(include=["mrcnn_ext", "mrcnn_ext.*"]), "mrcnn_ext.configs"],
    py_modules=["mrcnn_ext_command"],
    package_dir={"mrcnn_ext.configs": "configs"},
    package_data={
        "mrcnn_ext": ["py.typed", "app/*.css", "app/*.js", *libraries],
        "mrcnn_ext.reports": ["*.html"],
        "mrcnn_ext.configs": ["**/*.yaml", "**/*.py"],
    },
    **extension(),
)

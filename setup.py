"""Build of the compiled operators; everything else about the package is in pyproject.toml.

They are optional: where one cannot be built, the installation succeeds, says so, and leaves
the reason in the package (`build_failure_<device>.txt`) for `mask2former_ops.backend` to report.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

# PyTorch takes the folder above nvcc for the toolkit, which is wrong if nvcc is a link or a script.
nvcc = Path(shutil.which("nvcc") or "/nowhere/bin/nvcc")
for toolkit in (nvcc.parents[1], nvcc.resolve().parents[1], Path("/usr/local/cuda")):
    if (toolkit / "include" / "cuda_runtime.h").exists():
        os.environ.setdefault("CUDA_HOME", str(toolkit))
try:
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError as error:
    BuildExtension, CUDA_HOME = build_ext, None
    NO_TORCH = f"PyTorch cannot be imported by the build ({error}); pass --no-build-isolation"
else:
    NO_TORCH = None

SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
# LibTorch's stable ABI as of PyTorch 2.10: the library serves that and every later release.
DEFINES = [("TORCH_TARGET_VERSION", "0x020a000000000000")]
# What GCC needs to vectorise the kernels: fused multiply-adds, floating-point conditions without
# traps, and sums in another order where the source allows it.
VECTORISE = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd"]
GCC_FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", *VECTORISE]
MSVC_FLAGS = ["/O2", "/std:c++17", "/fp:contract"]
CXX_FLAGS = MSVC_FLAGS if sys.platform == "win32" else GCC_FLAGS
SOURCES = Path("ops/csrc")


def paths(pattern: str) -> list[str]:
    return sorted(path.as_posix() for path in SOURCES.glob(pattern))


def extensions() -> list[Extension]:
    """``ms_deform_attn_cpu`` and, with a CUDA toolkit, ``ms_deform_attn_cuda``."""
    cpu = {"name": "mask2former_ops.ms_deform_attn_cpu", "sources": paths("*.cpp")}
    cpu["depends"] = paths("**/*.h")
    if NO_TORCH:
        return [Extension(**cpu, optional=True)]
    common = {"define_macros": DEFINES, "py_limited_api": True, "optional": True}
    found = [CppExtension(**cpu, **common, extra_compile_args=CXX_FLAGS)]
    if CUDA_HOME and paths("cuda/*.cu"):
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
        found.append(
            CUDAExtension(
                "mask2former_ops.ms_deform_attn_cuda",
                paths("cuda/*.cu"),
                depends=paths("**/*.h") + paths("cuda/*.cuh"),
                **{**common, "define_macros": [*DEFINES, ("USE_CUDA", None)]},
                extra_compile_args={"cxx": CXX_FLAGS, "nvcc": ["-O3", "-std=c++17"]},
            )
        )
    return found


class OptionalBuildExtension(BuildExtension):
    """Builds what can be built, and records what cannot."""

    def get_ext_filename(self, fullname: str) -> str:
        # Loaded by torch.ops.load_library rather than imported, so it has no Python version.
        return os.path.join(*fullname.split(".")) + SUFFIX

    def get_export_symbols(self, extension: Extension) -> list[str]:
        return []  # nor has it a PyInit_ function for Windows to export

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as error:  # no compiler at all
            for extension in self.extensions:
                if not Path(self.get_ext_fullpath(extension.name)).exists():
                    self.record(extension, error)

    def build_extension(self, extension: Extension) -> None:
        try:
            if NO_TORCH:
                raise RuntimeError(NO_TORCH)
            super().build_extension(extension)
        except Exception as error:
            self.record(extension, error)
        else:
            self.record(extension, None)

    def record(self, extension: Extension, error: Exception | None) -> None:
        """Write, or remove, the note that tells `mask2former_ops` why there is no library.

        A library that an earlier build left in a checkout goes too: it is not that of the sources.
        """
        device = extension.name.rpartition("_")[2]
        reason = f"{type(error).__name__}: {error}"
        folders = {Path(self.get_ext_fullpath(extension.name)).parent}
        if self.inplace or self.editable_mode:
            folders.add(Path("ops"))
        for folder in folders:
            note = folder / f"build_failure_{device}.txt"
            note.unlink(missing_ok=True)
            if error is not None:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"ms_deform_attn_{device}{SUFFIX}").unlink(missing_ok=True)
                note.write_text(f"its build failed ({reason})\n", "utf-8")
        if error is not None:
            print(
                f"WARNING: the compiled operator for {device} was NOT built; PyTorch's own, much "
                f"slower operators take its place.\n  {reason}\n  Install a C++17 compiler (for "
                "cuda, also the CUDA toolkit), then `pip install -v --no-build-isolation .` again",
                file=sys.stderr,
            )


setup(
    packages=[*find_packages(include=["mask2former*"]), "mask2former_ops"],
    package_dir={"mask2former_ops": "ops"},
    include_package_data=False,  # else the sources of the operator would be installed too
    package_data={"mask2former": ["data/categories/*.json", "checkpoint/*.json"]},
    ext_modules=extensions(),
    cmdclass={"build_ext": OptionalBuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)

# Of the clone that it lies in: spack repo add packages/spack && spack install qpipe +cuda cuda_arch=90
import os

from spack.package import *
from spack_repo.builtin.build_systems.cmake import CMakePackage, generator
from spack_repo.builtin.build_systems.cuda import CudaPackage

CLONE = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))


class Qpipe(CMakePackage, CudaPackage):
    """Quantizes large language models on many GPUs: GPTQ, AWQ, NF4, FP8 and others, into checkpoints that transformers and vLLM load. Texts and the hub
    need the packages of scripts/requirements.txt, in the Python that QPIPE_PYTHON names."""

    git = "file://" + CLONE

    license("Apache-2.0")

    version("main", branch="main")

    depends_on("c", type="build")
    depends_on("cxx", type="build")
    depends_on("cmake@3.25:", type="build")
    depends_on("ninja", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("tomlplusplus", type="build")
    depends_on("cli11", type="build")
    depends_on("nlohmann-json", type="build")

    depends_on("mpi")
    depends_on("openblas threads=pthreads")
    depends_on("hdf5")
    depends_on("zlib-api")
    depends_on("xxhash")
    depends_on("re2")
    depends_on("fmt")
    depends_on("spdlog")
    depends_on("nccl", when="+cuda")

    generator("ninja")

    def cmake_args(self):
        cuda = self.spec.satisfies("+cuda")
        args = [self.define("QPIPE_CUDA", "ON" if cuda else "OFF"), self.define("BUILD_TESTING", False), self.define("QPIPE_WERROR", False)]
        if cuda:
            nccl = self.spec["nccl"].prefix
            args += [self.define("NCCL_INCLUDE", nccl.include), self.define("NCCL_LIBRARY", join_path(nccl.lib, "libnccl.so"))]
            # Hopper's own instructions are those of 90a. Without cuda_arch CMakeLists.txt chooses.
            archs = ["90a-real" if arch == "90" else arch for arch in self.spec.variants["cuda_arch"].value if arch != "none"]
            if archs:
                args.append(self.define("CMAKE_CUDA_ARCHITECTURES", archs))
        return args

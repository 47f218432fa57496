"""llama.cpp's CPU kernels for compare_cpu.py: ggml, compiled for this processor.

The package index has no binary of it, but llama-cpp-python's source package holds all of llama.cpp.
Only its two libraries that attention needs are built: libggml-base.so and libggml-cpu.so.

    python compare_ggml.py FOLDER     tries the libraries there, and tells their version
"""

import contextlib
import ctypes
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

PACKAGE = "llama-cpp-python"
INSIDE = "/vendor/llama.cpp/ggml/"  # of the source package
OPTIONS = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_NATIVE=ON",
           "-DGGML_OPENMP=ON", "-DGGML_BLAS=OFF"]
# As a part of a project, because alone it configures files that the package lacks.
PROJECT = """cmake_minimum_required(VERSION 3.18)
project(only_ggml C CXX)
add_subdirectory(ggml)
"""
LIBRARIES = ["libggml-base.so", "libggml-cpu.so"]
F32, F16 = 0, 1  # of ggml_type


class Unavailable(Exception):
    """In one line, why this peer is not measured."""


# ---- building it --------------------------------------------------------------------------------

def run(what, *command, **options):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        errors = [line.strip() for line in done.stdout.splitlines() if "error" in line.lower()]
        raise Unavailable("%s failed: %s" % (what, (errors or [done.stdout.strip()])[0][-200:]))


def build(directory, say):
    """The folder of the libraries: built once, into `directory`, minutes at the lowest priority."""
    if all((directory / name).exists() for name in LIBRARIES):
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch_:
        scratch = pathlib.Path(scratch_)
        say("fetching %s's sources" % PACKAGE)
        run("fetching " + PACKAGE, sys.executable, "-m", "pip", "--disable-pip-version-check",
            "download", "--no-deps", "--no-binary", PACKAGE, "--dest", scratch, PACKAGE)
        archive = next(scratch.glob("*.tar.gz"))
        with tarfile.open(archive) as package:
            package.extractall(scratch, [member for member in package.getmembers()
                                         if INSIDE in member.name and ".." not in member.name])
        say("building ggml of %s: minutes" % archive.name)
        source = next(scratch.glob("*" + INSIDE)).parent
        (source / "CMakeLists.txt").write_text(PROJECT)
        built = scratch / "build"
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        run("configuring ggml", "cmake", "-S", source, "-B", built, *generator, *OPTIONS)
        run("compiling ggml", "nice", "-n", "19", "cmake", "--build", built, "--parallel",
            os.cpu_count(), "--target", "ggml-base", "ggml-cpu")
        (directory / "package").write_text(archive.name.removesuffix(".tar.gz"))
        for name in LIBRARIES:
            shutil.copyfile(next(built.rglob(name)).resolve(), directory / name)
    return directory


# ---- calling it ---------------------------------------------------------------------------------

class Parameters(ctypes.Structure):
    """ggml_init_params, which is passed by value. Everything else is an opaque pointer."""
    _fields_ = [("bytes", ctypes.c_size_t), ("buffer", ctypes.c_void_p),
                ("no_alloc", ctypes.c_bool)]


POINTER, INT, FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
FUNCTIONS = {
    "libggml-base.so": {
        "ggml_version": (ctypes.c_char_p, []),
        "ggml_init": (POINTER, [Parameters]),
        "ggml_free": (None, [POINTER]),
        "ggml_tensor_overhead": (ctypes.c_size_t, []),
        "ggml_graph_overhead": (ctypes.c_size_t, []),
        "ggml_new_tensor_4d": (POINTER, [POINTER, INT] + 4 * [ctypes.c_int64]),
        "ggml_flash_attn_ext": (POINTER, 5 * [POINTER] + 3 * [FLOAT]),
        "ggml_new_graph": (POINTER, [POINTER]),
        "ggml_build_forward_expand": (None, [POINTER, POINTER]),
        "ggml_get_data": (POINTER, [POINTER]),
        "ggml_backend_alloc_ctx_tensors": (POINTER, [POINTER, POINTER]),
        "ggml_backend_buffer_free": (None, [POINTER]),
        "ggml_backend_graph_compute": (INT, [POINTER, POINTER]),
        "ggml_backend_free": (None, [POINTER])},
    "libggml-cpu.so": {
        "ggml_backend_cpu_init": (POINTER, []),
        "ggml_backend_cpu_set_n_threads": (None, [POINTER, INT]),
        "ggml_cpu_has_avx2": (INT, []),
        "ggml_cpu_has_avx512": (INT, []),
        "ggml_cpu_has_neon": (INT, [])}}


class Library:
    def __init__(self, directory):
        for name, functions in FUNCTIONS.items():  # the second needs the first, by its name
            loaded = ctypes.CDLL(str(directory / name), mode=ctypes.RTLD_GLOBAL)
            for function, (result, arguments) in functions.items():
                found = getattr(loaded, function)
                found.restype, found.argtypes = result, arguments
                setattr(self, function.removeprefix("ggml_"), found)

    def describe(self):
        """0.25.3 (AVX-512)"""
        units = [("AVX-512", self.cpu_has_avx512), ("AVX2", self.cpu_has_avx2),
                 ("NEON", self.cpu_has_neon)]
        return "%s (%s)" % (self.version().decode(),
                            next((name for name, has in units if has()), "plain"))


class Ggml:
    """ggml_flash_attn_ext as llama.cpp calls it: q in float32, k and v in `dtype`, each head's rows
    contiguous; a causal mask is a matrix of float16. The output is float32, [batch, seqlen, heads,
    head_dim]."""

    implementation = ""

    def __init__(self, library, cell, inputs, threads, dtype):
        import numpy
        self.name = "ggml " + dtype
        self.library = library
        kind = {"f32": F32, "f16": F16}[dtype]
        self.context = library.init(Parameters(
            8 * library.tensor_overhead() + library.graph_overhead(), None, True))

        def tensor(type_, array):
            batch, heads, rows, columns = array.shape
            return library.new_tensor_4d(self.context, type_, columns, rows, heads, batch)
        arrays = [(F32, inputs.q), (kind, inputs.k), (kind, inputs.v)]
        if cell.causal:
            hidden = numpy.arange(cell.seqlen_k)[None, :] > numpy.arange(cell.seqlen_q)[:, None]
            mask = numpy.where(hidden, numpy.float16("-inf"), numpy.float16(0))
            arrays.append((F16, mask[None, None]))
        tensors = [tensor(*pair) for pair in arrays]
        self.result = library.flash_attn_ext(
            self.context, *tensors[:3], tensors[3] if cell.causal else None,
            1 / math.sqrt(cell.head_dim), 0, 0)  # the scale, no ALiBi, no softcap
        self.graph = library.new_graph(self.context)
        library.build_forward_expand(self.graph, self.result)
        self.backend = library.backend_cpu_init()
        library.backend_cpu_set_n_threads(self.backend, threads)
        self.memory = library.backend_alloc_ctx_tensors(self.context, self.backend)
        for (type_, array), made in zip(arrays, tensors):
            self.view(made, array.shape, (numpy.float32, numpy.float16)[type_])[...] = array
        self.shape = (cell.batch, cell.seqlen_q, cell.nheads_q, cell.head_dim)

    def view(self, tensor, shape, dtype):
        import numpy
        count = math.prod(shape) * numpy.dtype(dtype).itemsize
        bytes_ = (ctypes.c_uint8 * count).from_address(self.library.get_data(tensor))
        return numpy.frombuffer(bytes_, dtype).reshape(shape)

    def call(self):
        if self.library.backend_graph_compute(self.backend, self.graph):
            raise RuntimeError("ggml_backend_graph_compute failed")

    def output(self):
        import numpy
        return self.view(self.result, self.shape, numpy.float32).transpose(0, 2, 1, 3)

    def close(self):
        self.library.backend_buffer_free(self.memory)
        self.library.free(self.context)
        self.library.backend_free(self.backend)


# ---- whether it works here ----------------------------------------------------------------------

def load(directory, say, given=None):
    """(the library, what it is). A process of its own tries it first: what was compiled for another
    processor, or has changed, would take this one along."""
    try:
        folder = given or build(directory, say)
    except (OSError, StopIteration, tarfile.TarError) as error:
        raise Unavailable("building it failed: %r" % error) from error
    done = subprocess.run([sys.executable, __file__, str(folder)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["stopped by signal %d" % -done.returncode])[-1]
        raise Unavailable("the libraries in %s do not work here: %s" % (folder, why[:200]))
    package = ""
    with contextlib.suppress(OSError):
        package = (folder / "package").read_text()
    described = done.stdout.strip().splitlines()[-1]
    return Library(folder), described + (" of " + package if package else "")


def probe(folder):
    from compare_kernels import Cell, Inputs, Reference
    library = Library(folder)
    for cell in (Cell("prefill", 2, 3, 3, 128, 128, 64, True),
                 Cell("decode", 1, 8, 2, 1, 640, 128)):
        inputs = Inputs(cell)
        kernel = Ggml(library, cell, inputs, 2, "f16")
        kernel.call()
        error = Reference(cell, inputs).error(kernel.output())
        if not error < 0.02:
            raise SystemExit("an error of %g in %s" % (error, cell.name()))
        kernel.close()
    print(library.describe())


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    probe(pathlib.Path(sys.argv[1]))

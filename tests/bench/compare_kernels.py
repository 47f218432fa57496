"""What compare_cpu.py times: the library and its peers, each in its favourite layout, on the same
numbers. A kernel is prepared once and called again and again; its output can be asked for."""

import ctypes
import math

import numpy


class Cell:
    """One problem. Tensors are [batch, heads, seqlen, head_dim] wherever one is spoken of."""

    def __init__(self, kind, batch, nheads_q, nheads_k, seqlen_q, seqlen_k, head_dim, causal=False):
        self.kind = kind  # prefill, cached, decode or long
        self.batch, self.nheads_q, self.nheads_k = batch, nheads_q, nheads_k
        self.seqlen_q, self.seqlen_k, self.head_dim = seqlen_q, seqlen_k, head_dim
        self.causal = causal

    def flops(self):
        pairs = self.seqlen_q * self.seqlen_k
        if self.causal:
            pairs = self.seqlen_q * (self.seqlen_q + 1) // 2
        return 4.0 * self.head_dim * self.batch * self.nheads_q * pairs

    def kv_bytes(self, kernel):
        """Of K and V together, as the kernel of that name has them: "torch f32 grouped"."""
        width = 4 if "f32" in kernel.split() else 2
        return 2 * self.batch * self.nheads_k * self.seqlen_k * self.head_dim * width

    def name(self):
        words = ["b%d" % self.batch, "sq%d sk%d" % (self.seqlen_q, self.seqlen_k)
                 if self.seqlen_q != self.seqlen_k else "s%d" % self.seqlen_q,
                 "h%d" % self.nheads_q if self.nheads_q == self.nheads_k
                 else "hq%d hk%d" % (self.nheads_q, self.nheads_k), "d%d" % self.head_dim]
        return " ".join(words + (["causal"] if self.causal else []))


def aligned(shape, dtype):
    """An array that starts at a multiple of 64 bytes."""
    bytes_ = math.prod(shape) * numpy.dtype(dtype).itemsize
    memory = numpy.zeros(bytes_ + 64, numpy.uint8)
    start = -memory.ctypes.data % 64
    return memory[start:start + bytes_].view(dtype).reshape(shape)


def aligned_copy(array, dtype=None):
    copy = aligned(array.shape, dtype or array.dtype)
    copy[...] = array
    return copy


class Inputs:
    """q, k, v as float32. In a decoding cell they are multiples of 1/32 below 4, which f16 and bf16
    hold exactly: every kernel then has the same numbers whatever its dtype."""

    def __init__(self, cell, seed=1):
        generator = numpy.random.default_rng(seed)

        def draw(heads, seqlen):
            values = generator.standard_normal((cell.batch, heads, seqlen, cell.head_dim),
                                               numpy.float32)
            if cell.kind == "decode":
                values = numpy.clip(numpy.round(values * 32), -127, 127) / 32
            return aligned_copy(values, numpy.float32)
        self.q = draw(cell.nheads_q, cell.seqlen_q)
        self.k = draw(cell.nheads_k, cell.seqlen_k)
        self.v = draw(cell.nheads_k, cell.seqlen_k)


class Reference:
    """Some rows in float64: the first and the last query, and others, of a few heads."""

    def __init__(self, cell, inputs, heads=4, rows=16, seed=2):
        generator = numpy.random.default_rng(seed)
        self.rows = numpy.unique(numpy.concatenate(
            [[0, cell.seqlen_q - 1], generator.integers(0, cell.seqlen_q, rows)]))
        everything = cell.batch * cell.nheads_q
        self.heads = sorted({0, everything - 1, *generator.integers(0, everything, heads).tolist()})
        self.o = []
        for head in self.heads:
            b, h = divmod(head, cell.nheads_q)
            hk = h // (cell.nheads_q // cell.nheads_k)
            q = inputs.q[b, h][self.rows].astype(numpy.float64)
            s = q @ inputs.k[b, hk].astype(numpy.float64).T / math.sqrt(cell.head_dim)
            if cell.causal:
                s[numpy.arange(cell.seqlen_k)[None, :] > self.rows[:, None]] = -numpy.inf
            p = numpy.exp(s - s.max(-1, keepdims=True))
            self.o.append(p @ inputs.v[b, hk].astype(numpy.float64) / p.sum(-1, keepdims=True))
        self.size = float(max(numpy.abs(o).max() for o in self.o))

    def error(self, output):
        """The largest difference over those rows; NaN counts as one."""
        worst = 0.0
        for head, o in zip(self.heads, self.o):
            b, h = divmod(head, output.shape[1])
            difference = float(numpy.abs(output[b, h][self.rows].astype(numpy.float64) - o).max())
            worst = difference if not difference <= worst else worst
        return worst


# ---- the library --------------------------------------------------------------------------------

class Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in
                ("threads", "causal", "dtype", "heads_first", "batch", "nheads_q", "nheads_k",
                 "seqlen_q", "seqlen_k", "head_dim")]


class Library:
    """The shared object made of compare_shim.cpp, tools/ceiling.cpp and the library."""

    def __init__(self, path):
        self.c = ctypes.CDLL(str(path))
        pointer = ctypes.c_void_p
        for name, result, arguments in (
                ("prepare", pointer, [ctypes.POINTER(Shape)] + 4 * [pointer]),
                ("call", ctypes.c_int32, [pointer]), ("message", ctypes.c_char_p, [pointer]),
                ("implementation", ctypes.c_char_p, [pointer]), ("release", None, [pointer]),
                ("peak_gflops", ctypes.c_double,
                 [ctypes.c_int32, ctypes.c_double, ctypes.c_char_p]),
                ("read_gbytes", ctypes.c_double,
                 [ctypes.c_int32, ctypes.c_double, pointer, ctypes.c_int64]),
                ("peak_name", None, [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t])):
            function = getattr(self.c, "compare_" + name)
            function.restype, function.argtypes = result, arguments

    def peak_gflops(self, threads, implementation="", seconds=0.0015):
        return self.c.compare_peak_gflops(threads, seconds, implementation.encode())

    def read_gbytes(self, threads, memory, bytes_, seconds=0.0015):
        return self.c.compare_read_gbytes(threads, seconds, memory.ctypes.data, bytes_)

    def peak_name(self, implementation):
        name = ctypes.create_string_buffer(64)
        self.c.compare_peak_name(implementation.encode(), name, len(name))
        return name.value.decode()


class Tilewise:
    def __init__(self, library, cell, inputs, threads, layout, dtype="f32"):
        self.name = "tilewise %s %s" % (layout, dtype)
        self.library, self.layout = library, layout
        kind = {"f32": numpy.float32, "f16": numpy.float16}[dtype]
        heads_first = layout == "bhsd"

        def stored(array):
            return aligned_copy(array if heads_first else array.transpose(0, 2, 1, 3), kind)
        self.tensors = [stored(array) for array in (inputs.q, inputs.k, inputs.v)]
        self.tensors.append(aligned(self.tensors[0].shape, kind))
        shape = Shape(threads, cell.causal, {"f32": 2, "f16": 3}[dtype], heads_first, cell.batch,
                      cell.nheads_q, cell.nheads_k, cell.seqlen_q, cell.seqlen_k, cell.head_dim)
        self.prepared = library.c.compare_prepare(
            ctypes.byref(shape), *[tensor.ctypes.data for tensor in self.tensors])
        self.implementation = library.c.compare_implementation(self.prepared).decode()
        self.once = library.c.compare_call

    def call(self):
        if self.once(self.prepared):
            raise RuntimeError(self.library.c.compare_message(self.prepared).decode())

    def output(self):
        o = self.tensors[3]
        return o if self.layout == "bhsd" else o.transpose(0, 2, 1, 3)

    def close(self):
        self.library.c.compare_release(self.prepared)


# ---- PyTorch ------------------------------------------------------------------------------------

class Torch:
    """scaled_dot_product_attention on [batch, heads, seqlen, head_dim]. `grouped` (decoding): the
    query heads of a group as the queries of one head, which is the same sum."""

    implementation = ""

    def __init__(self, cell, inputs, threads, dtype="f32", grouped=False):
        import torch
        self.name = "torch " + dtype + (" grouped" if grouped else "")
        self.torch, self.threads = torch, threads
        kind = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
        self.q, self.k, self.v = (torch.from_numpy(array).to(kind)
                                  for array in (inputs.q, inputs.k, inputs.v))
        self.shape = self.q.shape
        if grouped:
            self.q = self.q.reshape(cell.batch, cell.nheads_k, -1, cell.head_dim)
        self.options = {"is_causal": cell.causal}
        if cell.nheads_q != cell.nheads_k and not grouped:
            self.options["enable_gqa"] = True
        torch.set_num_threads(threads)

    def call(self):
        with self.torch.inference_mode():
            self.o = self.torch.nn.functional.scaled_dot_product_attention(
                self.q, self.k, self.v, **self.options)

    def output(self):
        return self.o.reshape(self.shape).to(self.torch.float32).numpy()

    def close(self):
        self.q = self.k = self.v = self.o = None


# ---- ONNX Runtime -------------------------------------------------------------------------------

class OnnxRuntime:
    """com.microsoft MultiHeadAttention on [batch, seqlen, heads head_dim], or ONNX's own Attention
    (opset 23) on [batch, heads, seqlen, head_dim]; memory is bound beforehand."""

    implementation = ""

    def __init__(self, cell, inputs, threads, operator="mha"):
        import onnxruntime
        from onnx import TensorProto, helper
        self.name = "onnxruntime " + operator
        self.cell, self.operator = cell, operator
        if operator == "mha":
            node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["o"],
                                    domain="com.microsoft", num_heads=cell.nheads_q,
                                    unidirectional=int(cell.causal))
        else:
            node = helper.make_node("Attention", ["q", "k", "v"], ["o"], is_causal=int(cell.causal))
        dimensions = 3 if operator == "mha" else 4

        def stored(array):
            if operator != "mha":
                return array
            rows = array.transpose(0, 2, 1, 3)
            return aligned_copy(rows).reshape(*rows.shape[:2], -1)
        arrays = {name: stored(getattr(inputs, name)) for name in "qkv"}
        described = [helper.make_tensor_value_info(
            name, TensorProto.FLOAT, [name + str(n) for n in range(dimensions)]) for name in "qkvo"]
        model = helper.make_model(
            helper.make_graph([node], "attention", described[:3], described[3:]), ir_version=10,
            opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.o = aligned(arrays["q"].shape, numpy.float32)
        self.binding = self.session.io_binding()
        for name, array in arrays.items():
            self.binding.bind_input(name, "cpu", 0, numpy.float32, array.shape, array.ctypes.data)
        self.binding.bind_output("o", "cpu", 0, numpy.float32, self.o.shape, self.o.ctypes.data)
        self.arrays = arrays

    def call(self):
        self.session.run_with_iobinding(self.binding)

    def output(self):
        if self.operator != "mha":
            return self.o
        cell = self.cell
        return self.o.reshape(cell.batch, cell.seqlen_q, cell.nheads_q,
                              cell.head_dim).transpose(0, 2, 1, 3)

    def close(self):
        self.binding = self.session = None

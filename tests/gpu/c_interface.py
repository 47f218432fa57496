"""The C interface from Python: its structs and constants are read off the header, so that there is
no second description of them.

    library = Library("libtilewise.so", "include/tilewise/tilewise.h")
    attention = library.struct("tilewise_attention")
    library.check("tilewise_attention_forward", context, byref(attention), ...)
"""

import ctypes
import re
from pathlib import Path

HEADER = Path(__file__).resolve().parents[2] / "include" / "tilewise" / "tilewise.h"

NUMBERS = {"int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "int64_t": ctypes.c_int64,
           "uint64_t": ctypes.c_uint64, "double": ctypes.c_double, "char": ctypes.c_char,
           "size_t": ctypes.c_size_t}


class Header:
    """The constants and structs of a C header as plain as ours."""

    def __init__(self, path=HEADER):
        text = re.sub(r"/\*.*?\*/", "", Path(path).read_text(encoding="utf-8"), flags=re.DOTALL)
        self.constants = {name: int(value) for name, value
                          in re.findall(r"\b(TILEWISE_\w+) = (-?\d+)", text)}
        self.structs = {}
        for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \1;", text, re.DOTALL):
            fields = [field for line in body.split(";") if line.strip()
                      for field in self.fields_of(" ".join(line.split()))]
            self.structs[name] = type(name, (ctypes.Structure,), {"_fields_": fields})

    def fields_of(self, declaration):
        """"tilewise_tensor q, k" or "int64_t shape[5]": each name with its type."""
        kind, names = re.fullmatch(r"(?:const )?(\w+\s?\*?) ?(.+)", declaration).groups()
        kind = kind.replace(" ", "")
        # What is no number and no struct is a pointer: to data, to a function, to what is hidden.
        base = NUMBERS.get(kind) or self.structs.get(kind) or ctypes.c_void_p
        for name in names.split(","):
            name, size = re.fullmatch(r"\*?(\w+)(?:\[(\w+)\])?", name.strip()).groups()
            if size:
                count = int(size) if size.isdigit() else self.constants[size]
                yield name, base * count
            else:
                yield name, base


class Library:
    """A shared library that exports the interface."""

    def __init__(self, path):
        self.header = Header()
        self.functions = ctypes.CDLL(str(path))
        self.functions.tilewise_cuda_backend.restype = ctypes.c_void_p
        self.functions.tilewise_status_name.restype = ctypes.c_char_p

    def constant(self, name):
        return self.header.constants["TILEWISE_" + name]

    def struct(self, name):
        """A struct as its own functions fill it in, or zero but for its size."""
        made = self.header.structs[name]()
        size = ctypes.sizeof(made)
        if name == "tilewise_attention":
            self.functions.tilewise_attention_init_sized(ctypes.byref(made), size, b"fa2", None)
        elif name == "tilewise_context_options":
            self.functions.tilewise_context_options_init_sized(ctypes.byref(made), size, None)
        elif hasattr(made, "struct_size"):
            made.struct_size = size
        return made

    @staticmethod
    def text(field):
        """A struct's text, be it inside or pointed to."""
        return (field if isinstance(field, bytes) else ctypes.string_at(field)).decode()

    def check(self, function, *arguments):
        """Calls it with an error behind the arguments; raises what the error says."""
        error = self.struct("tilewise_error")
        code = getattr(self.functions, function)(*arguments, ctypes.byref(error))
        if code != 0:
            raise RuntimeError(f"{function}: {error.message.decode()}")

    def context_on_gpu(self):
        options = self.struct("tilewise_context_options")
        options.device_type = self.constant("CUDA")
        options.backend = self.functions.tilewise_cuda_backend()
        context = ctypes.c_void_p()
        self.check("tilewise_context_create", ctypes.byref(options), ctypes.byref(context))
        return context

    def tensor(self, array, dims=None):
        """A view of a PyTorch tensor; `dims`: in this order."""
        dtypes = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16",
                  "torch.int32": "I32", "torch.bool": "BOOL"}
        view = self.header.structs["tilewise_tensor"]()
        dims = range(array.dim()) if dims is None else dims
        view.data = array.data_ptr()
        view.dtype = self.constant(dtypes[str(array.dtype)])
        view.device_type = self.constant("CUDA" if array.is_cuda else "CPU")
        view.device_id = array.device.index or 0
        view.ndim = len(dims)
        for at, dim in enumerate(dims):
            view.shape[at], view.strides[at] = array.shape[dim], array.stride(dim)
        return view

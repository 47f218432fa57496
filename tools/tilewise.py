#!/usr/bin/env python3
"""Have an attention function judged by Tilewise, from Python.

One file, no build: copy it next to your code, or put this directory on sys.path. It needs numpy and
the `tilewise` command; torch is used where it is there and asked for.

    >>> import numpy as np, tilewise
    >>> def attention(q, k, v, scale):
    ...     s = np.einsum("bihd,bjhd->bhij", q, k) * scale
    ...     p = np.exp(s - s.max(-1, keepdims=True))
    ...     return np.einsum("bhij,bjhd->bihd", p / p.sum(-1, keepdims=True), v)
    >>> tilewise.check(attention, "s100 h2 d64 f32").passed
    True

and a wrong one is told where it is wrong:

    >>> def forgot_scale(q, k, v):
    ...     return attention(q, k, v, scale=1)
    >>> tilewise.check(forgot_scale, "s100 h2 d64 f32")   # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    AssertionError: FAIL ...

The problem is one line of text: `fwd` or `bwd`, b2 (batch), s128 or sq100 sk128 (lengths), h4 or
hq8 hk2 (heads), d64, f32 (or f64 f16 bf16 e4m3 e5m2), bshd (or bhsd, packed), causal,
window=127,0 softcap=30 alibi bias=1,h,q,k mask=b,1,1,k conv=torch_sdpa fill=peaks seed=7 ...
docs/problem.md lists every key.

What the function is given
    q, k, v come first, by position, in the problem's layout:
        bshd     [batch, seqlen, nheads, head_dim]     the default
        bhsd     [batch, nheads, seqlen, head_dim]     PyTorch's
        packed   [total, nheads, head_dim]             with cu_seqlens_q and cu_seqlens_k
    and by name, if its signature has the name:
        dout                                 the gradient of o, where the problem says bwd
        bias, mask (or attn_bias, attn_mask), alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k,
        seqlens_q, seqlens_k                 arrays, None where the problem has none
        max_seqlen_q, max_seqlen_k           the longest sequence's length
        scale (or softmax_scale, sm_scale), causal (or is_causal), window_size (left, right; -1 is
        unbounded), softcap                  numbers
        problem                              the whole line
        kv_num_blocks, kv_indices, full_kv_num_blocks, full_kv_indices of a block mask, and
        block_size (queries, keys)
        block_table, cache_batch_idx, cache_leftpad, k_new, v_new, rotary_cos, rotary_sin,
        rotary_interleaved of a cache; k and v are then the cache
        q_descale, k_descale, v_descale, k_scales, v_scales
    Names with a default keep it where the problem has no such array. docs/command.md says what
    shapes they have, and how k and v hold i8 and q8_0.

What it returns
    o, or (o, lse), or a dict with any of o, lse, dq, dk, dv, dbias, dsinks: numpy arrays, torch
    tensors, or whatever numpy.asarray takes (bf16 and fp8 arrays of ml_dtypes too). o, dq, dk and
    dv in the problem's layout; lse [batch, nheads_q, seqlen_q], packed [nheads_q, total_q]. Where
    the problem says new=, also k and v: the cache with the new rows in it, a copy, as the function
    may not write to what it is given.

numpy has no bf16 and no fp8: such inputs come as torch tensors if torch is there, else as float32
arrays that hold the exact values, and the verdict's notes say so. framework="torch" gives torch
tensors for every dtype; device="cuda" moves them there.

    python3 tilewise.py --selftest     judges a correct numpy attention and one with a planted bug
"""

import argparse
import inspect
import json
import math
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

import numpy

__all__ = ["check", "Verdict", "BadUse", "Tensor", "read_safetensors", "write_safetensors"]


class BadUse(ValueError):
    """The question is wrong, not the numbers: a problem that does not parse, a wrong shape."""


# ---- .safetensors: u64 header length, JSON header, raw bytes ------------------------------------

# The format's dtypes, and the numpy dtype that holds their bits.
_STORAGE = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1",
    "I64": "<i8", "I32": "<i4", "BOOL": "?",
}
_FROM_NUMPY = {
    "float64": "F64", "float32": "F32", "float16": "F16", "int64": "I64", "int32": "I32",
    "bool": "BOOL",
    "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",  # ml_dtypes
}
_TO_TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32",
    "BOOL": "bool",
}


class Tensor:
    """An array of any of the formats: `dtype` is the format's name, `bits` the numpy array that
    stores it, the numbers themselves or, for BF16 and fp8, their bit patterns."""

    def __init__(self, dtype, bits):
        self.dtype = dtype
        self.bits = bits

    @property
    def shape(self):
        return self.bits.shape

    def numpy(self):
        """The values: BF16 and fp8 become float32, which holds all of them exactly."""
        if self.dtype == "BF16":
            return (self.bits.astype(numpy.uint32) << 16).view(numpy.float32)
        if self.dtype == "F8_E5M2":  # the upper half of an f16
            return (self.bits.astype(numpy.uint16) << 8).view(numpy.float16).astype(numpy.float32)
        if self.dtype == "F8_E4M3":
            return _e4m3_values()[self.bits]
        return self.bits

    def torch(self, device=None):
        import torch
        wanted = getattr(torch, _TO_TORCH[self.dtype])
        bits = numpy.array(self.bits)  # a copy: torch wants memory that it may write
        if self.dtype == "BF16":
            bits = bits.view(numpy.int16)  # torch before 2.3 has no uint16
        tensor = torch.from_numpy(bits).reshape(self.shape)
        if tensor.dtype != wanted:
            tensor = tensor.view(wanted)
        return tensor.to(device) if device is not None else tensor

    @staticmethod
    def of(value, name="array"):
        """A Tensor of a numpy array, a torch tensor, or what numpy.asarray takes."""
        if isinstance(value, Tensor):
            return value
        if type(value).__module__.split(".")[0] == "torch":
            return _from_torch(value, name)
        array = numpy.asarray(value)
        dtype = _FROM_NUMPY.get(array.dtype.name)
        if dtype is None:
            raise TypeError("%s has dtype %s, expected one of %s"
                            % (name, array.dtype, ", ".join(_FROM_NUMPY)))
        shape = array.shape
        array = numpy.ascontiguousarray(array).reshape(shape)  # a scalar keeps no dimension
        if _STORAGE[dtype] in ("<u2", "u1"):
            return Tensor(dtype, array.view(_STORAGE[dtype]))
        return Tensor(dtype, array.astype(_STORAGE[dtype], copy=False))


def _from_torch(value, name):
    import torch
    torch_name = str(value.dtype).split(".")[-1]
    names = {torch_dtype: dtype for dtype, torch_dtype in _TO_TORCH.items()}
    if torch_name not in names:
        raise TypeError("%s has dtype %s, expected one of %s"
                        % (name, value.dtype, ", ".join("torch." + known for known in names)))
    dtype = names[torch_name]
    value = value.detach().cpu().contiguous()
    if dtype == "BF16":
        return Tensor(dtype, value.view(torch.int16).numpy().view("<u2"))
    if dtype.startswith("F8"):
        return Tensor(dtype, value.view(torch.uint8).numpy())
    return Tensor(dtype, value.numpy())


def _e4m3_values():
    """The 256 numbers of E4M3: bias 7, no infinities, all ones is NaN (OCP OFP8)."""
    codes = numpy.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    values = numpy.where(exponent == 0, mantissa / 8 * 2.0**-6,
                         (1 + mantissa / 8) * 2.0**(exponent - 7.0))
    values[(codes & 127) == 127] = numpy.nan
    return numpy.where(codes >= 128, -values, values).astype(numpy.float32)


def read_safetensors(path):
    """({name: Tensor}, metadata) of a .safetensors file."""
    text = pathlib.Path(path).read_bytes()
    length = struct.unpack_from("<Q", text)[0] if len(text) >= 8 else len(text)
    if 8 + length > len(text):
        raise ValueError("%s: the header claims more bytes than the file has" % path)
    try:
        header = json.loads(text[8:8 + length].decode("utf-8"))
    except ValueError as error:
        raise ValueError("%s: the header is not JSON (%s)" % (path, error)) from None
    data = memoryview(text)[8 + length:]
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in _STORAGE:
            # Other files may carry other formats; what nobody asks for is no reason to fail.
            continue
        storage = numpy.dtype(_STORAGE[entry["dtype"]])
        begin, end = entry["data_offsets"]
        count = math.prod(entry["shape"])
        if not 0 <= begin <= end <= len(data) or end - begin != count * storage.itemsize:
            raise ValueError("%s: %s has offsets %s, shape %s and dtype %s, which do not fit"
                             % (path, name, [begin, end], entry["shape"], entry["dtype"]))
        bits = numpy.frombuffer(data[begin:end], dtype=storage).reshape(entry["shape"])
        tensors[name] = Tensor(entry["dtype"], bits)
    return tensors, metadata


def write_safetensors(path, arrays, metadata=None):
    """Writes {name: array}. Wide elements first, so that each array is aligned; then by name."""
    tensors = {name: Tensor.of(value, name) for name, value in arrays.items()}
    header = {"__metadata__": metadata} if metadata else {}
    offset = 0
    order = sorted(tensors, key=lambda name: (-tensors[name].bits.dtype.itemsize, name))
    for name in order:
        tensor = tensors[name]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + tensor.bits.nbytes]}
        offset += tensor.bits.nbytes
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(tensors[name].bits.tobytes())


# ---- the command --------------------------------------------------------------------------------

def _command(binary):
    """The `tilewise` command: as said, $TILEWISE, the PATH, or built beside this file."""
    if binary or os.environ.get("TILEWISE"):
        said = str(binary or os.environ["TILEWISE"])
        found = shutil.which(said)
        if not found:
            raise FileNotFoundError("%s is no program, expected the tilewise command" % said)
        return found
    on_path = shutil.which("tilewise")
    if on_path:
        return on_path
    built = pathlib.Path(__file__).resolve().parent.parent.glob("build/*/bin/tilewise")
    newest = sorted(built, key=lambda path: path.stat().st_mtime)
    if newest:
        return str(newest[-1])
    raise FileNotFoundError(
        "no tilewise command: expected it in $TILEWISE, on the PATH, or in build/*/bin beside "
        "tools/tilewise.py (cmake --preset release && cmake --build --preset release)")


def _run(arguments):
    """The exit status (0 or 1) and standard output; bad use is raised."""
    done = subprocess.run(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True)
    if done.returncode in (0, 1):
        return done.returncode, done.stdout
    message = done.stderr.strip() or done.stdout.strip()
    if done.returncode == 2:
        raise BadUse(message)
    raise RuntimeError("%s ended with status %d: %s" % (arguments, done.returncode, message))


def _parameters(line, inputs):
    """What the canonical line says, under the names that functions use."""
    words = line.split()
    keys = dict(word.split("=", 1) for word in words if "=" in word)
    head_dim = inputs["q"].shape[-1]

    def longest(side):  # sq128, sk3,5,0
        return max(int(length) for word in words if re.fullmatch(side + "[0-9,]+", word)
                   for length in word[2:].split(","))

    if "scale" in keys:
        scale = float(keys["scale"])
    elif keys.get("default_scale", "one" if keys.get("conv") == "cudnn" else "") == "one":
        scale = 1.0
    else:
        scale = 1 / math.sqrt(head_dim)

    values = {
        "scale": scale,
        "causal": "causal" in words,
        "window_size": tuple(int(side) for side in keys.get("window", "-1,-1").split(",")),
        "softcap": float(keys.get("softcap", 0)),
        "max_seqlen_q": longest("sq"),
        "max_seqlen_k": longest("sk"),
        "problem": line,
    }
    if "blocks" in keys:
        values["block_size"] = tuple(int(size) for size in keys["blocks"].split(",")[:2])
    if "rotary" in keys:
        values["rotary_interleaved"] = not keys["rotary"].endswith(",half")
    return values


_ARRAYS = ("dout", "bias", "mask", "alibi_slopes", "sinks", "cu_seqlens_q", "cu_seqlens_k",
           "seqlens_q", "seqlens_k", "kv_num_blocks", "kv_indices", "full_kv_num_blocks",
           "full_kv_indices", "block_size", "block_table", "cache_batch_idx", "cache_leftpad",
           "k_new", "v_new", "rotary_cos", "rotary_sin", "rotary_interleaved", "q_descale",
           "k_descale", "v_descale", "k_scales", "v_scales")
_RETURNED = ("o", "lse", "dq", "dk", "dv", "dbias", "dsinks", "k", "v")
_OTHER_NAMES = {"softmax_scale": "scale", "sm_scale": "scale", "is_causal": "causal",
                "attn_bias": "bias", "attn_mask": "mask"}


def _arguments(fn, values):
    """Those of `values` that fn's signature names, q, k and v apart."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # built-in functions may have no signature
        return {}
    positional = [parameter for parameter in parameters
                  if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)]
    chosen = {}
    for parameter in parameters:
        if parameter in positional[:3] or parameter.kind in (parameter.VAR_POSITIONAL,
                                                             parameter.VAR_KEYWORD):
            continue
        name = _OTHER_NAMES.get(parameter.name, parameter.name)
        if name in values:
            chosen[parameter.name] = values[name]
        elif parameter.default is parameter.empty:
            if name not in _ARRAYS:
                raise BadUse("the function wants %r, expected names among: %s"
                             % (parameter.name,
                                ", ".join(sorted({*values, *_ARRAYS, *_OTHER_NAMES}))))
            chosen[parameter.name] = None
    return chosen


def _outputs(returned):
    """{name: array} of what the function returned."""
    if isinstance(returned, dict):
        outputs = dict(returned)
    elif isinstance(returned, (tuple, list)):
        if len(returned) > 2:
            raise BadUse("the function returned %d things, expected o, (o, lse) or a dict of %s"
                         % (len(returned), ", ".join(_RETURNED)))
        outputs = dict(zip(("o", "lse"), returned))
    else:
        outputs = {"o": returned}
    outputs = {name: value for name, value in outputs.items() if value is not None}
    unknown = set(outputs) - set(_RETURNED)
    if unknown or "o" not in outputs:
        raise BadUse("the function returned %s, expected o and any of %s"
                     % (sorted(outputs) or "None", ", ".join(_RETURNED[1:])))
    return {name: Tensor.of(value, name) for name, value in outputs.items()}


class Verdict:
    """`passed`; `text`, for people; `data`, the command's record as a dict (its fields are those of
    oracle/harness/verdict.hpp); `notes`, what had to be done to call the function."""

    def __init__(self, passed, text, data, notes):
        self.passed = passed
        self.text = text
        self.data = data
        self.notes = notes

    def __bool__(self):
        return self.passed

    def __str__(self):
        return "\n".join([self.text] + ["note: " + note for note in self.notes])


def _pass_text(name, data):
    parts = ["%s %.2g of its bound" % (output["name"], output["max_ratio"])
             for output in data["outputs"] if output["present"]]
    text = "pass  %s  %s   %s" % (name, data["problem"], ", ".join(parts + [data["coverage"]]))
    if data["not_checked"]:
        text += "\n      not checked: " + "; ".join(data["not_checked"])
    return text


def check(fn, problem, binary=None, raise_on_fail=True, framework=None, device=None,
          every_row=False, directory=None):
    """Judges what `fn` computes on `problem` and returns a Verdict; if it is wrong, raises an
    AssertionError with the verdict's text.

    binary         the tilewise command; otherwise it is looked for
    raise_on_fail  False: return the verdict, whatever it is
    framework      "numpy" or "torch": what fn is given; otherwise as the text at the top says
    device         where torch tensors go
    every_row      judge every row of large problems too
    directory      keep inputs.safetensors and outputs.safetensors here
    """
    if framework not in (None, "numpy", "torch"):
        raise BadUse("framework is %r, expected \"numpy\" or \"torch\"" % (framework,))
    command = _command(binary)
    name = getattr(fn, "__name__", type(fn).__name__)
    with tempfile.TemporaryDirectory(prefix="tilewise_") as temporary:
        folder = pathlib.Path(directory or temporary)
        _run([command, "gen", problem, "--out", str(folder)])
        line = (folder / "problem.txt").read_text().strip()
        inputs, _ = read_safetensors(folder / "inputs.safetensors")

        notes = []
        convert = _converter(inputs["q"].dtype, framework, device, notes)
        given = {key: convert(tensor) for key, tensor in inputs.items()}
        q, k, v = given.pop("q"), given.pop("k"), given.pop("v")
        values = dict(_parameters(line, inputs), **given)
        outputs = _outputs(fn(q, k, v, **_arguments(fn, values)))

        path = folder / "outputs.safetensors"
        write_safetensors(path, outputs, {"problem": line})
        judge = [command, "check", line, "--in", str(folder / "inputs.safetensors"),
                 "--outputs", str(path)] + (["--every-row"] if every_row else [])
        status, text = _run(judge + ["--json"])
        data = json.loads(text)["verdicts"][0]
        data["implementation"] = name
        if status == 0:
            verdict = Verdict(True, _pass_text(name, data), data, notes)
        else:
            page = _run(judge)[1].rstrip().replace(str(path), name, 1).splitlines()
            if directory is None:  # the command names files that are about to go
                page = [text for text in page if not text.startswith("  reproduce")]
                notes.append("check(..., directory=DIR) keeps the tensors in DIR")
            verdict = Verdict(False, "\n".join(page), data, notes)
    if raise_on_fail and not verdict.passed:
        raise AssertionError(str(verdict))
    return verdict


def _converter(dtype, framework, device, notes):
    """How a Tensor becomes what the function is given."""
    numpy_has_it = dtype in ("F64", "F32", "F16")
    if framework == "torch" or (framework is None and not numpy_has_it):
        try:
            import torch  # noqa: F401
            return lambda tensor: tensor.torch(device)
        except ImportError:
            if framework == "torch":
                raise
    if not numpy_has_it:
        notes.append("%s inputs were given as float32 arrays of exactly their values" % dtype)
    return lambda tensor: tensor.numpy()


# ---- self-test ----------------------------------------------------------------------------------

def _attention(q, k, v, scale, causal, shift=0):
    """Attention by the book on bshd arrays; `shift` moves the causal diagonal."""
    group = q.shape[2] // k.shape[2]
    k, v = numpy.repeat(k, group, axis=2), numpy.repeat(v, group, axis=2)
    s = numpy.einsum("bihd,bjhd->bhij", q, k) * scale
    if causal:
        i, j = numpy.indices(s.shape[2:])
        s = numpy.where(j <= i + s.shape[3] - s.shape[2] + shift, s, -numpy.inf)
    m = s.max(axis=3, keepdims=True)
    p = numpy.exp(s - m)
    total = p.sum(axis=3, keepdims=True)
    o = numpy.einsum("bhij,bjhd->bihd", p / total, v)
    return o.astype(q.dtype), (m + numpy.log(total))[..., 0].astype(q.dtype)


def _selftest(binary):
    problem = "fwd b2 sq100 sk130 hq4 hk2 d32 f32 causal seed=1"

    def attention(q, k, v, scale, causal):
        return _attention(q, k, v, scale, causal)

    def diagonal_off_by_one(q, k, v, scale, causal):
        return _attention(q, k, v, scale, causal, shift=1)

    good = check(attention, problem, binary, raise_on_fail=False)
    bad = check(diagonal_off_by_one, problem, binary, raise_on_fail=False)
    print(good, bad, sep="\n\n")
    ok = good.passed and not bad.passed
    print("\nself-test: %s" % ("the correct one passed and the wrong one was rejected" if ok else
                               "WRONG: expected the first to pass and the second to fail"))
    return 0 if ok else 1


def main():
    parser = argparse.ArgumentParser(description="Judge attention functions from Python: see "
                                                 "check() in this file.")
    parser.add_argument("--selftest", action="store_true",
                        help="judge a correct numpy attention and one with a planted bug")
    parser.add_argument("--binary", help="the tilewise command")
    options = parser.parse_args()
    if not options.selftest:
        parser.error("nothing to do, expected --selftest; to judge a function, import this file")
    try:
        return _selftest(options.binary)
    except (BadUse, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

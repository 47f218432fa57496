"""tools/tilewise.py: its reader and writer by themselves, and functions judged by the command.

    TILEWISE=build/dev/bin/tilewise python3 tests/tilewise_py_test.py

Without a command the tests that need one are skipped, unless TILEWISE is set.
"""

import doctest
import os
import pathlib
import struct
import subprocess
import sys
import tempfile
import unittest

import numpy

sys.dont_write_bytecode = True
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import tilewise  # noqa: E402


def command():
    try:
        return tilewise._command(None)
    except FileNotFoundError:
        if os.environ.get("TILEWISE"):
            raise
        return None


COMMAND = command()


# ---- attention with numpy, forward and backward, on bshd arrays ---------------------------------

def probabilities(q, k, scale, causal, shift=0):
    """P, and the LSE, for heads already repeated."""
    s = numpy.einsum("bihd,bjhd->bhij", q, k) * scale
    if causal:
        i, j = numpy.indices(s.shape[2:])
        s = numpy.where(j <= i + s.shape[3] - s.shape[2] + shift, s, -numpy.inf)
    m = s.max(axis=3, keepdims=True)
    p = numpy.exp(s - m)
    total = p.sum(axis=3, keepdims=True)
    return p / total, (m + numpy.log(total))[..., 0]


def repeated(x, nheads_q):
    return numpy.repeat(x, nheads_q // x.shape[2], axis=2)


def forward(q, k, v, scale, causal, shift=0):
    p, lse = probabilities(q, repeated(k, q.shape[2]), scale, causal, shift)
    return numpy.einsum("bhij,bjhd->bihd", p, repeated(v, q.shape[2])), lse


def attention(q, k, v, scale, causal):
    return forward(q, k, v, scale, causal)


def backward(q, k, v, dout, scale, causal):
    nheads_q, nheads_k = q.shape[2], k.shape[2]
    k_all, v_all = repeated(k, nheads_q), repeated(v, nheads_q)
    p, lse = probabilities(q, k_all, scale, causal)
    o = numpy.einsum("bhij,bjhd->bihd", p, v_all)
    dp = numpy.einsum("bihd,bjhd->bhij", dout, v_all)
    ds = p * (dp - (p * dp).sum(axis=3, keepdims=True)) * scale

    def summed(x):  # over the query heads that share a key head
        b, s, _, d = x.shape
        return x.reshape(b, s, nheads_k, nheads_q // nheads_k, d).sum(axis=3)

    return {"o": o, "lse": lse, "dq": numpy.einsum("bhij,bjhd->bihd", ds, k_all),
            "dk": summed(numpy.einsum("bhij,bihd->bjhd", ds, q)),
            "dv": summed(numpy.einsum("bhij,bihd->bjhd", p, dout))}


# ---- files --------------------------------------------------------------------------------------

class SafetensorsTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.folder.name) / "a.safetensors"

    def tearDown(self):
        self.folder.cleanup()

    def test_round_trip(self):
        arrays = {
            "f64": numpy.arange(6.0).reshape(2, 3), "f32": numpy.float32([[1], [2]]),
            "f16": numpy.float16([1.5, -2]), "i64": numpy.arange(3), "i32": numpy.int32([[7]]),
            "bool": numpy.array([True, False]), "scalar": numpy.array(2.5),
            "empty": numpy.zeros((0, 4), numpy.float32),
            "transposed": numpy.arange(6, dtype=numpy.float32).reshape(2, 3).T,
            "big": numpy.arange(3, dtype=">f4"),
        }
        tilewise.write_safetensors(self.path, arrays, {"made": "here"})
        read, metadata = tilewise.read_safetensors(self.path)
        self.assertEqual(metadata, {"made": "here"})
        self.assertEqual(sorted(read), sorted(arrays))
        for name, array in arrays.items():
            self.assertEqual(read[name].shape, array.shape, name)
            self.assertEqual(read[name].numpy().dtype, array.dtype.newbyteorder("="), name)
            numpy.testing.assert_array_equal(read[name].numpy(), array, name)

    def test_exact_bytes(self):
        tilewise.write_safetensors(self.path, {"a": numpy.int32(7),
                                               "b": numpy.float16([1, -2])})
        header = (b'{"a":{"data_offsets":[0,4],"dtype":"I32","shape":[]},'
                  b'"b":{"data_offsets":[4,8],"dtype":"F16","shape":[2]}}')
        header += b" " * (-len(header) % 8)
        self.assertEqual(self.path.read_bytes(), struct.pack("<Q", len(header)) + header
                         + b"\7\0\0\0" + b"\0\x3c\0\xc0")

    def test_formats_that_numpy_lacks(self):
        bf16 = tilewise.Tensor("BF16", numpy.uint16([0x3f80, 0xc000, 0x0001, 0x7f80, 0x7fc0]))
        numpy.testing.assert_array_equal(bf16.numpy(), [1, -2, 2.0**-133, numpy.inf, numpy.nan])
        e4m3 = tilewise.Tensor("F8_E4M3", numpy.uint8([0x38, 0xb8, 0x7e, 0x01, 0x08, 0x7f]))
        numpy.testing.assert_array_equal(e4m3.numpy(),
                                         [1, -1, 448, 2.0**-9, 2.0**-6, numpy.nan])
        e5m2 = tilewise.Tensor("F8_E5M2", numpy.uint8([0x3c, 0xbc, 0x7b, 0x01, 0x7c, 0x7e]))
        numpy.testing.assert_array_equal(e5m2.numpy(),
                                         [1, -1, 57344, 2.0**-16, numpy.inf, numpy.nan])
        tensors = {"bf16": bf16, "e4m3": e4m3, "e5m2": e5m2}
        tilewise.write_safetensors(self.path, tensors)
        read, _ = tilewise.read_safetensors(self.path)
        for name, tensor in tensors.items():
            self.assertEqual(read[name].dtype, tensor.dtype)
            numpy.testing.assert_array_equal(read[name].bits, tensor.bits)

    def test_ml_dtypes(self):
        try:
            import ml_dtypes
        except ImportError:
            self.skipTest("no ml_dtypes")
        for dtype, name in ((ml_dtypes.bfloat16, "BF16"), (ml_dtypes.float8_e4m3fn, "F8_E4M3"),
                            (ml_dtypes.float8_e5m2, "F8_E5M2")):
            everything = numpy.arange(65536 if name == "BF16" else 256).astype(
                numpy.uint16 if name == "BF16" else numpy.uint8).view(dtype)
            tensor = tilewise.Tensor.of(everything)
            self.assertEqual(tensor.dtype, name)
            numpy.testing.assert_array_equal(tensor.numpy(), everything.astype(numpy.float32))

    def test_torch(self):
        try:
            import torch
        except ImportError:
            self.skipTest("no torch")
        for name, torch_name in tilewise._TO_TORCH.items():
            if not hasattr(torch, torch_name):
                continue
            bits = numpy.arange(6).reshape(2, 3).astype(tilewise._STORAGE[name])
            tensor = tilewise.Tensor(name, bits).torch()
            self.assertEqual(tensor.dtype, getattr(torch, torch_name))
            back = tilewise.Tensor.of(tensor)
            self.assertEqual(back.dtype, name)
            numpy.testing.assert_array_equal(back.bits, bits)

    def test_refuses(self):
        with self.assertRaisesRegex(TypeError, "o has dtype complex64, expected one of float64"):
            tilewise.Tensor.of(numpy.zeros(3, numpy.complex64), "o")
        tilewise.write_safetensors(self.path, {"a": numpy.zeros(3)})
        whole = self.path.read_bytes()
        for length in range(len(whole)):
            self.path.write_bytes(whole[:length])
            with self.assertRaisesRegex(ValueError, "a.safetensors"):
                tilewise.read_safetensors(self.path)

    def test_real_tensors(self):
        tensors, metadata = tilewise.read_safetensors(ROOT / "tests/data/minilm.safetensors")
        self.assertIn("Apache-2.0", metadata["licence"])
        self.assertEqual(len(tensors), 9)
        for tensor in tensors.values():
            self.assertEqual((tensor.dtype, tensor.shape), ("F32", (1, 179, 12, 32)))
            self.assertTrue(numpy.isfinite(tensor.numpy()).all())


class SignatureTest(unittest.TestCase):
    VALUES = {"scale": 0.5, "causal": True, "window_size": (3, 0), "bias": "the bias"}

    def chosen(self, fn):
        return tilewise._arguments(fn, self.VALUES)

    def test_names(self):
        self.assertEqual(self.chosen(lambda q, k, v: 0), {})
        self.assertEqual(self.chosen(lambda q, k, v, softmax_scale, is_causal, window_size: 0),
                         {"softmax_scale": 0.5, "is_causal": True, "window_size": (3, 0)})
        self.assertEqual(self.chosen(lambda a, b, c, *, attn_bias, mask, scale=9: 0),
                         {"attn_bias": "the bias", "mask": None, "scale": 0.5})
        self.assertEqual(self.chosen(lambda q, k, v, attn_mask="kept", eps=1e-6: 0), {})
        self.assertEqual(self.chosen(lambda *args, causal, **more: 0), {"causal": True})
        with self.assertRaisesRegex(tilewise.BadUse, "wants 'dropout', expected names among"):
            self.chosen(lambda q, k, v, dropout: 0)

    def test_returns(self):
        one = numpy.zeros(1)
        self.assertEqual(list(tilewise._outputs(one)), ["o"])
        self.assertEqual(list(tilewise._outputs((one, one))), ["o", "lse"])
        self.assertEqual(list(tilewise._outputs((one, None))), ["o"])
        self.assertEqual(list(tilewise._outputs({"o": one, "dq": one})), ["o", "dq"])
        for wrong in ({"out": one}, {"lse": one}, None, (one, one, one)):
            with self.assertRaises(tilewise.BadUse):
                tilewise._outputs(wrong)


# ---- with the command ---------------------------------------------------------------------------

@unittest.skipUnless(COMMAND, "no tilewise command")
class CheckTest(unittest.TestCase):
    def rejected(self, fn, problem):
        with self.assertRaises(AssertionError) as caught:
            tilewise.check(fn, problem)
        text = str(caught.exception)
        self.assertIn("FAIL", text)
        return text

    def test_correct_ones_pass(self):
        for problem in ("fwd b2 s100 h3 d32 f32", "fwd s64 h2 d64 f64",
                        "fwd b2 sq70 sk130 hq6 hk2 d32 f32 causal",
                        "fwd sq70 sk130 hq6 hk1 d16 dv24 f64 causal",
                        "fwd s50 h2 d16 f32 scale=0.3", "fwd s50 h2 d16 f32 conv=cudnn",
                        "fwd b2 s179 h12 d32 f32 fill=real"):
            with self.subTest(problem):
                verdict = tilewise.check(attention, problem)
                self.assertTrue(verdict)
                self.assertEqual(verdict.data["state"], "pass")
                self.assertIn("pass  attention", str(verdict))
                judged = {output["name"]: output for output in verdict.data["outputs"]}
                self.assertTrue(judged["o"]["present"] and judged["lse"]["present"])
                self.assertGreater(judged["o"]["rows_judged"], 0)

    def test_layouts_and_what_comes_with_them(self):
        def bhsd(q, k, v, scale):
            q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
            return forward(q, k, v, scale, False)[0].transpose(0, 2, 1, 3)

        def packed(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, scale):
            self.assertEqual(max_seqlen_q, 40)
            parts = [forward(q[None, a:b], k[None, c:d], v[None, c:d], scale, False)
                     for a, b, c, d in zip(cu_seqlens_q, cu_seqlens_q[1:],
                                           cu_seqlens_k, cu_seqlens_k[1:])]
            return (numpy.concatenate([o[0] for o, _ in parts]),
                    numpy.concatenate([lse[0] for _, lse in parts], axis=1))

        def masked(q, k, v, scale, bias, mask):
            s = numpy.einsum("bihd,bjhd->bhij", q, k) * scale + bias
            s = numpy.where(mask, s, -numpy.inf)
            seen = mask.any(axis=3, keepdims=True)
            p = numpy.exp(s - numpy.where(seen, s.max(axis=3, keepdims=True), 0))
            total = p.sum(axis=3, keepdims=True)
            return numpy.einsum("bhij,bjhd->bihd", p / numpy.where(total > 0, total, 1), v)

        self.assertTrue(tilewise.check(bhsd, "b2 sq30 sk50 h3 d16 f32 bhsd"))
        self.assertTrue(tilewise.check(packed, "b3 sq40,1,17 sk5,30,9 h2 d16 f32 packed"))
        self.assertTrue(tilewise.check(masked,
                                       "b2 s40 h2 d16 f32 bias=1,h,q,k mask=b,1,q,k"))

    def test_half_precision(self):
        def half(q, k, v, scale):
            self.assertEqual(q.dtype, numpy.float16)
            wide = (x.astype(numpy.float32) for x in (q, k, v))
            o, lse = forward(*wide, scale, False)
            return o.astype(numpy.float16), lse

        def from_float32(q, k, v, scale):
            return forward(numpy.asarray(q, numpy.float32), numpy.asarray(k, numpy.float32),
                           numpy.asarray(v, numpy.float32), scale, False)

        self.assertTrue(tilewise.check(half, "s100 h2 d64 f16"))
        for dtype, name in (("bf16", "BF16"), ("e4m3", "F8_E4M3"), ("e5m2", "F8_E5M2")):
            verdict = tilewise.check(from_float32, "s100 h2 d64 " + dtype, framework="numpy")
            self.assertEqual(verdict.notes, [name + " inputs were given as float32 arrays of "
                                             "exactly their values"])

    def test_backward(self):
        for problem in ("bwd s60 h2 d32 f64", "bwd b2 sq40 sk60 hq4 hk2 d16 f32 causal"):
            with self.subTest(problem):
                verdict = tilewise.check(backward, problem)
                present = [out["name"] for out in verdict.data["outputs"] if out["present"]]
                self.assertEqual(sorted(present), ["dk", "dq", "dv", "lse", "o"])

        def no_row_sum(q, k, v, dout, scale, causal):
            right = backward(q, k, v, dout, scale, causal)
            k_all = repeated(k, q.shape[2])
            p, _ = probabilities(q, k_all, scale, causal)
            dp = numpy.einsum("bihd,bjhd->bhij", dout, repeated(v, q.shape[2]))
            return dict(right, dq=numpy.einsum("bhij,bjhd->bihd", p * dp * scale, k_all))

        self.assertIn("dq", self.rejected(no_row_sum, "bwd s60 h2 d32 f64"))

    def test_sinks(self):
        def sinking(q, k, v, scale, sinks):
            s = numpy.einsum("bihd,bjhd->bhij", q, repeated(k, q.shape[2])) * scale
            c = numpy.broadcast_to(sinks[:, None, None], s.shape[:3] + (1,))
            p = numpy.exp(numpy.concatenate([s, c], axis=3))
            total = p.sum(axis=3, keepdims=True)
            o = numpy.einsum("bhij,bjhd->bihd", (p / total)[..., :-1], repeated(v, q.shape[2]))
            return o, numpy.log(total)[..., 0]

        def gradient_of_sinks(q, k, v, dout, scale, sinks):
            o, lse = sinking(q, k, v, scale, sinks)
            d = numpy.einsum("bihd,bihd->bhi", o, dout)
            p = numpy.exp(sinks[:, None] - lse)
            return {"o": o, "lse": lse, "dsinks": -(p * d).sum(axis=(0, 2), dtype=numpy.float32)}

        problem = "b2 s40 hq4 hk2 d16 f32 sink"
        self.assertTrue(tilewise.check(sinking, problem))
        self.rejected(attention, problem)
        judged = tilewise.check(gradient_of_sinks, "bwd " + problem).data
        present = [out["name"] for out in judged["outputs"] if out["present"]]
        self.assertEqual(sorted(present), ["dsinks", "lse", "o"])

        def without_heads(q, k, v, dout, scale, sinks):
            right = gradient_of_sinks(q, k, v, dout, scale, sinks)
            return dict(right, dsinks=right["dsinks"][:1])

        with self.assertRaisesRegex(tilewise.BadUse, r"dsinks has shape \[1\]: expected \[4\]"):
            tilewise.check(without_heads, "bwd " + problem)

    def test_block_masks(self):
        def blocked(q, k, v, scale, kv_num_blocks, kv_indices, full_kv_num_blocks,
                    full_kv_indices, block_size):
            high, wide = block_size
            b, h, rows, columns = kv_indices.shape
            seen = numpy.zeros((b, h, rows, columns), bool)
            for counts, indices in ((kv_num_blocks, kv_indices),
                                    (full_kv_num_blocks, full_kv_indices)):
                for at in numpy.ndindex(b, h, rows):
                    seen[at][indices[at][:counts[at]]] = True
            seen = seen.repeat(high, 2).repeat(wide, 3)[:, :, :q.shape[1], :k.shape[1]]
            s = numpy.einsum("bihd,bjhd->bhij", q, k) * scale
            p = numpy.where(seen, numpy.exp(s), 0)
            total = p.sum(axis=3, keepdims=True)
            return numpy.einsum("bhij,bjhd->bihd", p / numpy.where(total > 0, total, 1), v)

        self.assertTrue(tilewise.check(blocked, "b2 sq40 sk70 h2 d16 f32 blocks=16,32,0.5"))

    def test_caches(self):
        def paged(q, k, v, scale, seqlens_k, block_table, k_new, v_new, max_seqlen_k):
            self.assertEqual(max_seqlen_k, 70)
            k, v = k.copy(), v.copy()
            o = numpy.empty_like(q)
            for b, held in enumerate(seqlens_k):
                rows = numpy.arange(held + k_new.shape[1])
                places = block_table[b][rows // k.shape[1]], rows % k.shape[1]
                for cache, new in ((k, k_new), (v, v_new)):
                    cache[places[0][held:], places[1][held:]] = new[b]
                o[b] = forward(q[b:b + 1], k[places][None], v[places][None], scale, False)[0][0]
            return {"o": o, "k": k, "v": v}

        problem = "b2 sq3 sk70,31 hq4 hk2 d16 f32 page=16 new=2"
        self.assertTrue(tilewise.check(paged, problem))

        def loses_a_value(*args, **more):
            right = paged(*args, **more)
            right["v"][right["v"] == more["v_new"][1, 1, 0, 3]] = 0
            return right
        loses_a_value.__signature__ = tilewise.inspect.signature(paged)
        self.assertIn("\n  v ", self.rejected(loses_a_value, problem))
        with self.assertRaisesRegex(tilewise.BadUse, "holds no k: expected the cache"):
            tilewise.check(lambda q, k, v: q, problem)

    def test_quantised_keys(self):
        def i8(q, k, v, scale, k_scales, v_scales):
            self.assertEqual(k.dtype, numpy.int32)
            return forward(q, k * k_scales[..., None], v * v_scales[..., None], scale, False)

        def q8_0(q, k, v, scale):
            def values(blocks):  # a float16 scale and 32 whole numbers each
                blocks = numpy.ascontiguousarray(blocks.astype(numpy.uint8))
                scales = blocks[..., :2].copy().view(numpy.float16).astype(numpy.float32)
                numbers = scales * blocks[..., 2:].view(numpy.int8)
                return numbers.reshape(blocks.shape[:-2] + (-1,))
            return forward(q, values(k), values(v), scale, False)

        self.assertTrue(tilewise.check(i8, "b2 sq3 sk70 hq4 hk2 d16 f32 kv=i8"))
        self.assertTrue(tilewise.check(q8_0, "b2 sq3 sk70 hq4 hk2 d64 f32 kv=q8_0"))

    def test_wrong_ones_are_rejected(self):
        def diagonal_off_by_one(q, k, v, scale, causal):
            return forward(q, k, v, scale, causal, shift=1)[0]

        def wrong_scale(q, k, v, scale):
            return forward(q, k, v, scale * 1.01, False)[0]

        def lse_in_base_two(q, k, v, scale):
            o, lse = forward(q, k, v, scale, False)
            return o, lse / numpy.log(2)

        def wrong_group(q, k, v, scale):
            order = numpy.arange(q.shape[2]) % k.shape[2]
            return forward(q, k[:, :, order], v[:, :, order], scale, False)[0]

        def one_nan(q, k, v, scale):
            o = forward(q, k, v, scale, False)[0]
            o[0, 3, 1, 2] = numpy.nan
            return o

        plain = "fwd b1 sq60 sk60 hq4 hk2 d32 f32"
        self.assertIn("worst at", self.rejected(diagonal_off_by_one, plain + " causal"))
        self.rejected(wrong_scale, plain)
        self.assertIn("lse", self.rejected(lse_in_base_two, plain))
        self.rejected(wrong_group, plain)
        self.rejected(one_nan, plain)
        verdict = tilewise.check(wrong_scale, plain, raise_on_fail=False)
        self.assertFalse(verdict)
        self.assertEqual(verdict.data["state"], "fail")
        self.assertTrue(verdict.data["reasons"])

    def test_bad_use(self):
        def wrong_shape(q, k, v):
            return q[:, :-1]

        with self.assertRaisesRegex(tilewise.BadUse, r"o has shape \[1, 59, 2, 32\].*expected "
                                                     r"\[1, 60, 2, 32\]"):
            tilewise.check(wrong_shape, "s60 h2 d32 f32")
        with self.assertRaisesRegex(tilewise.BadUse, "column"):
            tilewise.check(attention, "s60 h2 d32 f33")
        with self.assertRaisesRegex(tilewise.BadUse, "o is f16"):
            tilewise.check(lambda q, k, v: q.astype(numpy.float16), "s60 h2 d32 f32")
        with self.assertRaises(FileNotFoundError):
            tilewise.check(attention, "s60 h2 d32 f32", binary="/no/such/tilewise")

    def test_keeps_the_tensors(self):
        with tempfile.TemporaryDirectory() as folder:
            tilewise.check(attention, "s20 h1 d16 f32", directory=folder)
            self.assertEqual(sorted(os.listdir(folder)),
                             ["inputs.safetensors", "outputs.safetensors", "problem.txt"])
            again = subprocess.run([COMMAND, "check", "--in", folder, "--outputs",
                                    os.path.join(folder, "outputs.safetensors")],
                                   stdout=subprocess.DEVNULL)
            self.assertEqual(again.returncode, 0)

    def test_torch(self):
        try:
            import torch
        except ImportError:
            self.skipTest("no torch")

        def sdpa(q, k, v, scale):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)

        for dtype in ("f32", "bf16", "f16"):
            self.assertTrue(tilewise.check(sdpa, "s60 h2 d32 bhsd " + dtype, framework="torch"))

    def test_documentation(self):
        result = doctest.testmod(tilewise)
        self.assertGreater(result.attempted, 3)
        self.assertEqual(result.failed, 0)

    def test_selftest(self):
        done = subprocess.run([sys.executable, "-B", str(ROOT / "tools/tilewise.py"), "--selftest",
                               "--binary", COMMAND], stdout=subprocess.PIPE,
                              universal_newlines=True)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("the correct one passed and the wrong one was rejected", done.stdout)


if __name__ == "__main__":
    unittest.main()

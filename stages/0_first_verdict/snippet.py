#!/usr/bin/env python3
"""Chapter 0: a snippet that circulates under the name of FlashAttention, judged and mended.

    python3 stages/0_first_verdict/snippet.py            judge every version
    python3 stages/0_first_verdict/snippet.py --readme   the same, and put the verdicts in README.md

Needs numpy and the built `tilewise` command. The functions attend one head: q, k, v are
[seqlen, head_dim].
"""

import pathlib
import re
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "tools"))

PROBLEM = "fwd sq128 sk128 d64 f32"
BLOCK = 32


# [snippet as_found]
def as_found(q, k, v):
    o = np.zeros_like(q)
    l = np.zeros(len(q))           # running maximum of the scores
    m = np.full(len(q), -np.inf)   # running sum of the exponentials
    for j in range(0, len(k), BLOCK):
        s = q @ k[j:j + BLOCK].T
        m_new = np.maximum(m, s.max(axis=1))
        p = np.exp(s - m_new)
        o = o * np.exp(m - m_new) + p @ v[j:j + BLOCK]
        m = m_new
    return o / l
# [end as_found]


# [snippet shapes]
def shapes_mended(q, k, v):
    o = np.zeros_like(q)
    l = np.zeros((len(q), 1))           # a column: one number a row
    m = np.full((len(q), 1), -np.inf)
    for j in range(0, len(k), BLOCK):
        s = q @ k[j:j + BLOCK].T
        m_new = np.maximum(m, s.max(axis=1, keepdims=True))
        p = np.exp(s - m_new)
        o = o * np.exp(m - m_new) + p @ v[j:j + BLOCK]
        m = m_new
    return o / l
# [end shapes]


# [snippet summed]
def sum_kept(q, k, v):
    o = np.zeros_like(q)
    l = np.zeros((len(q), 1))
    m = np.full((len(q), 1), -np.inf)
    for j in range(0, len(k), BLOCK):
        s = q @ k[j:j + BLOCK].T
        m_new = np.maximum(m, s.max(axis=1, keepdims=True))
        p = np.exp(s - m_new)
        l = l + p.sum(axis=1, keepdims=True)
        o = o * np.exp(m - m_new) + p @ v[j:j + BLOCK]
        m = m_new
    return o / l
# [end summed]


# [snippet rescaled]
def sum_rescaled(q, k, v):
    o = np.zeros_like(q)
    l = np.zeros((len(q), 1))
    m = np.full((len(q), 1), -np.inf)
    for j in range(0, len(k), BLOCK):
        s = q @ k[j:j + BLOCK].T
        m_new = np.maximum(m, s.max(axis=1, keepdims=True))
        alpha = np.exp(m - m_new)
        p = np.exp(s - m_new)
        l = l * alpha + p.sum(axis=1, keepdims=True)
        o = o * alpha + p @ v[j:j + BLOCK]
        m = m_new
    return o / l
# [end rescaled]


# [snippet mended]
def mended(q, k, v):
    scale = 1 / np.sqrt(np.float32(q.shape[1]))
    o = np.zeros_like(q)
    l = np.zeros((len(q), 1), np.float32)           # running sum of the exponentials
    m = np.full((len(q), 1), -np.inf, np.float32)   # running maximum of the scores
    for j in range(0, len(k), BLOCK):
        s = scale * (q @ k[j:j + BLOCK].T)
        m_new = np.maximum(m, s.max(axis=1, keepdims=True))
        alpha = np.exp(m - m_new)
        p = np.exp(s - m_new)
        l = l * alpha + p.sum(axis=1, keepdims=True)
        o = o * alpha + p @ v[j:j + BLOCK]
        m = m_new
    return o / l
# [end mended]


VERSIONS = (as_found, shapes_mended, sum_kept, sum_rescaled, mended)


def on_every_head(attend):
    """The same for [batch, seqlen, nheads, head_dim] tensors."""
    def attention(q, k, v):
        o = np.zeros_like(q)
        for b in range(q.shape[0]):
            for h in range(q.shape[2]):
                o[b, :, h] = attend(q[b, :, h], k[b, :, h], v[b, :, h])
        return o
    attention.__name__ = attend.__name__
    return attention


def verdict_of(attend, lines=9):
    """What the judge says, its first lines."""
    import tilewise
    try:
        with np.errstate(all="ignore"):
            verdict = tilewise.check(on_every_head(attend), PROBLEM, raise_on_fail=False)
    except ValueError as error:
        if isinstance(error, tilewise.BadUse):
            raise
        return ("it does not even run: %s" % error).rstrip()
    text = verdict.text.splitlines()
    return "\n".join(text[:lines] + (["..."] if len(text) > lines else []))


def main():
    verdicts = []
    for number, attend in enumerate(VERSIONS):
        verdicts.append(verdict_of(attend))
        print("%d  %s\n\n%s\n" % (number, attend.__name__, verdicts[-1]))
    if sys.argv[1:] == ["--readme"]:
        page = HERE / "README.md"
        text = page.read_text(encoding="utf-8")
        for number, verdict in enumerate(verdicts):
            pair = re.compile(r"(<!-- verdict %d -->\n).*?(<!-- /verdict -->)" % number, re.DOTALL)
            text, count = pair.subn(
                lambda hit, said=verdict: "%s```text\n%s\n```\n%s" % (hit[1], said, hit[2]), text)
            if count != 1:
                sys.exit("README.md has %d places for verdict %d, expected one" % (count, number))
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Attention problems for the kernels of every device: inputs, and what comes of them by the definition."""

import numpy as np

# B, H, L, S, E, V: around the edges of vectors, tiles, blocks of 64 and 128 queries and keys.
SIZES = [
    (1, 1, 1, 1, 1, 1),
    (2, 3, 5, 7, 4, 9),
    (1, 2, 24, 128, 16, 17),
    (1, 2, 49, 130, 8, 5),
    (1, 1, 100, 33, 33, 40),
    (2, 2, 1, 70, 21, 18),
    (1, 1, 150, 300, 2, 3),
    (1, 2, 270, 150, 3, 20),
    (0, 2, 3, 4, 5, 6),
    (2, 1, 0, 4, 5, 6),
    (1, 1, 3, 4, 0, 2),
]

# Around the edges of tiles of 64 and 128 rows, one and several; features on both sides of 64, and others.
TILE_SIZES = [
    (1, 1, 1, 1, 8, 8),
    (1, 3, 1, 2, 3, 5),
    (2, 2, 37, 130, 16, 24),
    (1, 1, 129, 70, 5, 7),
    (1, 2, 128, 128, 64, 64),
    (2, 1, 65, 127, 64, 40),
    (1, 1, 300, 515, 40, 64),
    (1, 1, 513, 129, 64, 64),
    (1, 2, 150, 400, 128, 128),
    (1, 1, 64, 129, 128, 72),
    (1, 1, 257, 1100, 7, 100),
    (1, 1, 400, 150, 7, 100),
]

VIEWS = {
    "heads inside the rows": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
    "batch inside the heads": lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1),
    "in longer rows": lambda x: np.pad(x, ((0, 0), (0, 0), (0, 0), (8, 16)))[..., 8:-16],
    "rows between vectors": lambda x: np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 0)))[..., 1:],
    "rows reversed": lambda x: np.ascontiguousarray(x[:, :, ::-1])[:, :, ::-1],
    "features turned": lambda x: np.ascontiguousarray(x.swapaxes(2, 3)).swapaxes(2, 3),
    "one head": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "one matrix": lambda x: np.broadcast_to(x[:1, :1], x.shape),
    "one row": lambda x: np.broadcast_to(x[:, :, :1], x.shape),
}

SCALE = 0.3


def inputs(size, dtype):
    """q, k, v and the gradient of the output, of which some have the heads inside the rows."""
    B, H, L, S, E, V = size
    rng = np.random.default_rng(sum(size))
    q, k, grad = (rng.standard_normal((B, n, H, d)).astype(dtype) for n, d in ((L, E), (S, E), (L, V)))
    v = rng.standard_normal((B, H, S, V + 3)).astype(dtype)[..., 1 : V + 1]
    return q.swapaxes(1, 2), k.swapaxes(1, 2), v, grad.swapaxes(1, 2)


def growing(k):
    """The keys, each larger than those before: scores soon exceed the largest of earlier ones by far."""
    return k * np.geomspace(0.1, 4, k.shape[2])[:, None]


def by_definition(q, k, v, grad, causal, mask=None, kept=1):
    """out, lse, and the gradients of q, k and v, in float64.

    ``mask`` is of bool, or added to the scores; ``kept`` is multiplied with the weights. A query that sees no
    key has weights of 0, and an lse of infinity.
    """
    q, k, v, grad = (x.astype(float) for x in (q, k, v, grad))
    p, lse = _probabilities(q, k, causal, mask)
    weights = p * kept
    out = weights @ v
    ds = p * (kept * (grad @ v.swapaxes(2, 3)) - (grad * out).sum(3)[..., None]) * SCALE
    return out, lse, ds @ k, ds.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ grad


def _probabilities(q, k, causal, mask):
    """They, and the logarithms of the sums of exponentials."""
    scores = q @ k.swapaxes(2, 3) * SCALE
    if causal:
        scores = np.where(np.tri(*scores.shape[2:], dtype=bool), scores, -np.inf)
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
    total = np.exp(scores).sum(3)
    lse = np.where(total == 0, np.inf, np.log(np.where(total == 0, 1, total)))
    return np.exp(scores - lse[..., None]), lse


FLOAT32 = 64 * np.finfo(np.float32).eps  # the roundings of float32 sums and exponentials


def with_errors(q, k, v, grad, causal, mask=None, kept=1):
    """(value, largest error) of each of the results of :func:`by_definition`, computed in q's 16 bits.

    What is rounded on the way are the factors of products: the probabilities, and the gradients of the
    scores. Each is off by half a unit in its last place, and so is every result. Probabilities may be
    subnormal.
    """
    unit, tiny = (2.0**-11, 2.0**-24) if q.dtype == np.float16 else (2.0**-8, 0)
    out, lse, dq, dk, dv = by_definition(q, k, v, grad, causal, mask, kept)
    q, k, v, g = (x.astype(np.float64) for x in (q, k, v, grad))
    p, _ = _probabilities(q, k, causal, mask)
    weights = p * kept
    error = unit + FLOAT32
    off = error * (weights @ np.abs(v) + np.abs(out))
    ds = p * (kept * (g @ v.swapaxes(2, 3)) - (g * out).sum(-1)[..., None])
    of_ds = (
        error * np.abs(ds)
        + p * (np.abs(g) * off).sum(-1)[..., None]
        + FLOAT32 * weights * (np.abs(g) @ np.abs(v.swapaxes(2, 3)))
    )
    errors = (
        off,
        FLOAT32 * (1 + np.abs(lse)),
        SCALE * of_ds @ np.abs(k) + error * np.abs(dq),
        SCALE * of_ds.swapaxes(2, 3) @ np.abs(q) + error * np.abs(dk),
        error * (weights.swapaxes(2, 3) @ np.abs(g) + np.abs(dv)),
    )
    slack = 8 * tiny * q.shape[2] * k.shape[2]
    return [(x, 1.01 * e + slack) for x, e in zip((out, lse, dq, dk, dv), errors, strict=True)]


def largest_error(found, wanted):
    """How far ``found`` is from (value, largest error) of each, as a share of that error; NaN is far."""
    pairs = [(x.astype(float), y, e) for x, (y, e) in zip(found, wanted, strict=True)]
    off = [
        np.abs(np.subtract(x, y, out=np.zeros(y.shape), where=x != y))
        / (e + 1e-30)  # infinities can be right
        for x, y, e in pairs
    ]
    return max(np.nan_to_num(x, nan=np.inf).max() for x in off)


def with_strides_of_their_own(*arrays):
    """Views of the values of each array, whose rows, heads and batches are other distances apart in each."""
    views = []
    for n, x in enumerate(arrays, 1):
        whole = np.full([*(size + n for size in x.shape[:-1]), x.shape[-1] + 16 * n], np.nan, x.dtype)
        view = whole[tuple(map(slice, x.shape))]
        view[...] = x
        views.append(view)
    return views

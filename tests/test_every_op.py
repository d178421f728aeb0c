"""Every op that there is: its kernels against its reference, its gradient, its second gradient, by check_op.

The table must name all ops: a new op without cases fails here.
"""

import functools
import math

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional  # registers the ops that the top level does not show
from minigrad.op import _ops
from minigrad.testing import case, check_op

BUILT_IN = sorted(name for name, op in _ops.items() if op.reference.__module__.startswith("minigrad"))


def uniform(low, high, shape):
    """An input of uniform random numbers."""
    return lambda rng: rng.uniform(low, high, shape)


def normal(shape):
    """An input of normal random numbers, among which no special ones are put."""
    return lambda rng: rng.standard_normal(shape)


def apart(shape):
    """Random numbers of which no two are closer than a finite difference's step: no ties, no kinks nearby."""

    def make(rng):
        n = int(np.prod(shape))
        return ((rng.permutation(n) - n / 2 + 0.25) / 4).reshape(shape).astype(float)

    return make


def each(names, cases):
    return dict.fromkeys(names, cases)


def integers(low, high, shape):
    return lambda rng: rng.integers(low, high, shape)


def bools(shape):
    return lambda rng: rng.random(shape) < 0.5


SHAPES = [(), (1,), (7,), (3, 5), (0,), (2, 0, 3), (2, 3, 4)]
LARGER = [(33, 17), (1025,)]
ONE = [case(s) for s in SHAPES + LARGER]
TWO = [case(s, s) for s in SHAPES + LARGER] + [
    case((3, 1), (4,)),
    case((2, 3, 4), ()),
    case((4,), 2.5),
    case(1.5, (4,)),
]
POSITIVE = [case(uniform(0.2, 3.0, s)) for s in SHAPES + LARGER]
INSIDE = [case(uniform(-0.9, 0.9, s)) for s in SHAPES + LARGER]
BOOLS = [case(bools(s), bools(s)) for s in SHAPES]
INTEGERS = [case(integers(0, 9, s), integers(0, 9, s)) for s in SHAPES]


def reductions(make=lambda shape: shape, empty=True):
    cases = [
        ((), ()),
        ((7,), (0,)),
        ((3, 5), (0,)),
        ((3, 5), (1,)),
        ((2, 3, 4), (0, 2)),
        ((2, 3, 4), (1,)),
        ((4, 3), (0, 1)),
        ((33, 17), (1,)),
    ]
    if empty:
        cases += [((0,), (0,)), ((2, 0, 3), (1,))]
    cases += [((0, 3), (1,))]
    return [case(make(shape), dim=dim, keepdim=keep) for shape, dim in cases for keep in (False, True)]


def extremum_grad_cases():
    """Rows in which two elements are the largest."""

    def rows_of_two(rng):
        return np.stack([rng.permutation([0.0, 1.0, 1.0, -1.0]) for _ in range(3)])

    return [
        case((3,), lambda rng: np.ones(3), rows_of_two, dim=(1,), keepdim=False, gradient=False),
        case((3, 1), lambda rng: np.ones((3, 1)), rows_of_two, dim=(1,), keepdim=True, gradient=False),
        case((1, 4), (1, 4), (3, 4), dim=(0,), keepdim=True, gradient=False),
    ]


def indices():
    return [
        ((5,), slice(1, 4)),
        ((5, 4), (slice(None, None, -2), 1)),
        ((5, 4), (..., None, slice(0, 0))),
        ((5, 4), np.array([0, 0, 3])),
        ((4, 33), np.array([-1, 2, -1, 0])),
        ((3, 2, 9), (np.array([0, 2, 0]), np.array([1, 1, -1]))),
        ((5, 4), (np.array([[0], [2]]), np.array([1, 1, -1]))),
        ((5, 4), np.arange(20).reshape(5, 4) % 3 == 0),
        ((3, 4, 2), (slice(None), np.array([2, 0, 2]))),
        ((0, 4), slice(None)),
    ]


def convolutions():
    """(N, C, H, W), (O, C / groups, KH, KW), and the options, by their names."""
    table = [
        ((2, 3, 5, 6), (4, 3, 3, 3), 1, 0, 1, 1),
        ((1, 1, 7, 7), (2, 1, 3, 2), 2, 1, 1, 1),
        ((2, 4, 6, 5), (6, 2, 3, 3), (2, 1), (1, 2), (1, 2), 2),
        ((1, 3, 5, 5), (3, 1, 3, 3), 1, 1, 1, 3),
        ((2, 5, 4, 4), (3, 5, 1, 1), 1, 0, 1, 1),
        ((1, 2, 9, 8), (17, 2, 5, 3), (3, 2), (2, 0), 1, 1),
        ((0, 2, 5, 5), (3, 2, 3, 3), 1, 1, 1, 1),
        ((1, 2, 3, 3), (2, 2, 3, 3), 1, 0, 1, 1),
        ((1, 2, 7, 6), (4, 1, 3, 2), (1, 2), (2, 1), (2, 3), 2),
        ((1, 17, 5, 4), (16, 17, 3, 2), (2, 1), 1, 1, 1),
        ((2, 17, 4, 6), (18, 17, 1, 1), 1, 0, 1, 1),
    ]
    for x, weight, *options, groups in table:
        stride, padding, dilation = ((o, o) if isinstance(o, int) else o for o in options)
        sizes = zip(x[2:], weight[2:], stride, padding, dilation, strict=True)
        size = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        output = (x[0], weight[0], *size)
        yield (
            x,
            weight,
            output,
            {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
        )


def conv_cases(which):
    """Where zeros are padded, kernels may multiply them by NaN or skip them: no NaN in the other factor."""
    cases = []
    for x, weight, output, options in convolutions():
        is_padded = options["padding"] != (0, 0)
        if which == "forward":
            length = weight[1] * weight[2] * weight[3]
            taps = normal(weight) if is_padded else weight
            cases.append(case(x, taps, None, length=length, **options))
            cases.append(case(x, taps, (weight[0],), length=length, **options))
        elif which == "input":  # a convolution with padding, whatever that of the forward pass is
            length = weight[0] * weight[2] * weight[3]
            cases.append(case(output, normal(weight), input_size=x[2:], length=length, **options))
        else:
            length = max(x[0] * output[2] * output[3], 1)
            g = normal(output) if is_padded else output
            cases.append(case(g, x, kernel_size=weight[2:], length=length, **options))
    return cases


POOLS = [
    # image, kernel, stride, padding, dilation, output size
    ((2, 3, 6, 8), (2, 2), (2, 2), (0, 0), (1, 1), (3, 4)),
    ((1, 2, 7, 5), (3, 2), (2, 1), (1, 1), (1, 1), (4, 6)),
    ((1, 1, 9, 9), (3, 3), (1, 2), (1, 1), (2, 2), (7, 4)),
    ((1, 2, 5, 5), (2, 2), (2, 2), (0, 0), (1, 1), (3, 3)),  # ceil_mode: the last window hangs over
    ((0, 2, 4, 4), (2, 2), (2, 2), (0, 0), (1, 1), (2, 2)),
    ((2, 1, 33, 40), (2, 2), (2, 2), (0, 0), (1, 1), (16, 20)),
    ((1, 1, 6, 35), (3, 3), (1, 1), (1, 1), (1, 1), (6, 35)),  # overlapping windows of several tiles
    ((1, 2, 3, 4), (3, 3), (1, 1), (1, 1), (1, 1), (3, 4)),  # or in strips of whole vectors
    ((1, 1, 4, 4), (4, 4), (1, 1), (2, 2), (1, 1), (5, 5)),
    ((1, 1, 2, 2), (2, 2), (1, 1), (1, 1), (3, 3), (1, 1)),  # the only window sees nothing but padding
]


def max_pool_cases(which):
    cases = []
    for shape, kernel, stride, padding, dilation, size in POOLS:
        options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "size": size}
        output = (*shape[:2], *size)

        def taps(rng, shape=shape, options=options):
            x = rng.standard_normal(shape)
            return mg.get_op("max_pool2d").reference(np, x, **options)[1]

        if which == "forward":
            has_limit = dilation != (3, 3)  # else the output is -inf, which has no differences
            cases.append(case(apart(shape), length=1, gradient=has_limit, **options))
        elif which == "gather":
            cases.append(case(shape, taps, length=1, **options))
        else:
            length = kernel[0] * kernel[1]
            cases.append(case(output, taps, input_size=shape[2:], length=length, **options))
    return cases


def avg_pool_cases(backward):
    cases = []
    for shape, kernel, stride, padding, dilation, size in POOLS:
        if dilation != (1, 1):
            continue
        for include_pad, divisor in ((True, 0), (False, 0), (True, 3)):
            options = {
                "kernel": kernel,
                "stride": stride,
                "padding": padding,
                "size": size,
                "include_pad": include_pad,
                "divisor": divisor,
                "length": kernel[0] * kernel[1],
            }
            if backward:
                cases.append(case((*shape[:2], *size), input_size=shape[2:], **options))
            else:
                cases.append(case(shape, **options))
    return cases


ADAPTIVE = [
    ((2, 3, 7, 5), (3, 2)),
    ((1, 2, 4, 4), (1, 1)),
    ((1, 1, 3, 3), (5, 4)),
    ((0, 2, 4, 4), (2, 2)),
    ((2, 1, 6, 6), (6, 6)),
]

# Images, their patches as columns, and the windows.
FOLDS = [
    ((2, 3, 5, 6), (2, 12, 20), {"kernel": (2, 2), "stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}),
    ((1, 2, 7, 5), (1, 12, 12), {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    ((0, 1, 4, 4), (0, 4, 4), {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0), "dilation": (1, 1)}),
]

LAYER_NORMS = [
    # x, the number of axes that are normalised over
    ((3, 5), 1),
    ((7,), 1),
    ((2, 3, 4), 2),
    ((4, 1), 1),
    ((0, 3), 1),
    ((3, 0), 1),
    ((5, 130), 1),
    ((2, 1030), 1),
]
GROUP_NORMS = [(2, 2, 3, 4), (3, 1, 2, 1), (2, 3, 1, 7), (1, 2, 9, 130), (0, 2, 3, 4), (2, 2, 2, 0)]
BATCH_NORMS = [(4, 3), (3, 2, 5), (2, 3, 4, 5), (70, 5), (1, 2, 300), (0, 3, 2), (300, 1)]


def normalizations():
    """By the op's name: the shapes of x, of its statistics and of weight and bias; the axes."""
    layer = [(x, tuple(range(len(x) - dims, len(x))), x[len(x) - dims :]) for x, dims in LAYER_NORMS]
    group = [(x, (2, 3), (1, *x[1:3], 1)) for x in GROUP_NORMS]
    batch = [(x, (0, *range(2, len(x))), (1, x[1], *(1,) * (len(x) - 2))) for x in BATCH_NORMS]
    for name, table in (("layer_norm", layer), ("group_norm", group), ("batch_norm", batch)):
        for x, axes, parameters in table:
            statistics = tuple(1 if axis in axes else n for axis, n in enumerate(x))
            yield name, x, statistics, parameters, axes


def norm_cases():
    cases = {}
    for name, x, statistics, parameters, axes in normalizations():
        options = {"axes": axes, "parameters": parameters, "length": int(np.prod(x))}
        forward, backward = cases.setdefault(name, []), cases.setdefault(f"{name}_grad", [])
        for weight, bias in ((None, None), (parameters, parameters), (parameters, None), (None, parameters)):
            forward.append(case(x, weight, bias, eps=0.1, gradient=0 not in x, **options))
            if weight and bias:
                flat = (int(np.prod(parameters)),)
                forward.append(case(x, flat, flat, eps=0.1, gradient=0 not in x, **options))
        for weight in (None, parameters, (int(np.prod(parameters)),)):
            backward.append(case(x, x, statistics, statistics, weight, **options))
        if name == "batch_norm":
            mean, var = parameters, uniform(0.5, 2.0, parameters)
            inference = cases.setdefault("batch_norm_inference", [])
            sums = cases.setdefault("batch_norm_weight_grad", [])
            sums.append(case(x, x, mean, length=int(np.prod(x))))
            inference += [case(x, mean, var, w, b, eps=0.1) for w, b in ((None, None), (mean, mean))]
    return cases


ROWS = [(3,), (1, 1), (4, 5), (2, 3, 33), (0, 4), (3, 0), (5, 130), (2, 1030)]


def softmax_cases(inputs):
    last = [case(*[s] * inputs, length=s[-1]) for s in ROWS]
    return last + [
        case(*[s] * inputs, dim=d, length=s[d]) for s, d in (((5, 7), 0), ((2, 3, 33), 1), ((2, 0, 3), 1))
    ]


LOGITS = [(4, 5), (1, 1), (3, 33), (0, 4), (2, 130), (2, 1030)]


def cross_entropy_cases():
    for rows, columns in LOGITS:

        def target(rng, rows=rows, columns=columns):
            """The first is not ignored, where there is a class but 0; the second is."""
            classes = rng.integers(0, columns, rows)
            classes[:1] = columns - 1
            classes[1:2] = 0
            return classes

        yield (rows, columns), target


# T, N, E, H, whether backwards. The gradients of the small ones are checked.
LSTMS = [
    (3, 2, 2, 3, False),
    (2, 1, 3, 1, True),
    (1, 3, 1, 2, False),
    (3, 2, 2, 2, True),
    (2, 0, 2, 3, False),
    (3, 9, 5, 17, True),
    (2, 7, 19, 35, False),
    (2, 3, 0, 5, False),
]


def lstm_cases():
    for T, N, E, H, reverse in LSTMS:
        options = {"reverse": reverse, "length": 8 * (E + H) * T, "gradient": H < 4}
        for bias in ((4 * H,), None):
            yield case((T, N, E), (N, H), (N, H), (4 * H, E), (4 * H, H), bias, None, **options)
            constant = uniform(0.5, 0.5, (T, N, E))  # the vectors are equal, whatever their numbers
            inputs = constant, (N, H), (N, H), (4 * H, E), (4 * H, H), bias, integers(0, 3, (T, N))
            yield case(*inputs, **options | {"gradient": False})


def lstm_grad_cases():
    """With every choice of the outputs that a gradient came for."""
    for T, N, _, H, reverse in LSTMS:
        inputs = ((4 * H, H), (N, H), (T, N, H), uniform(0.1, 0.9, (T, N, 4 * H)))
        states, gates = (T, N, H), (T, N, 4 * H)
        for g in ((states, None, None), (states, states, None), (None, states, None), (None, None, gates)):
            yield case(*inputs, *g, reverse=reverse, length=16 * H * T, gradient=H * T < 6)


def lstm_weight_grad_cases():
    for T, N, E, H, reverse in LSTMS:
        for with_bias in (True, False):
            options = {"reverse": reverse, "with_bias": with_bias, "length": T * N + 1, "gradient": H < 4}
            yield case((T, N, 4 * H), (T, N, E), (N, H), (T, N, H), **options)


def rnn_cases(backward):
    for T, N, _, H, reverse in LSTMS:
        for nonlinearity in ("tanh", "relu"):
            options = {
                "reverse": reverse, "nonlinearity": nonlinearity, "length": 4 * H * T, "gradient": H < 4,
            }  # fmt: skip
            if backward:
                yield case((T, N, H), uniform(0.1, 0.9, (T, N, H)), (H, H), **options)
            else:
                yield case((T, N, H), (N, H), (H, H), **options)


def gru_cases():
    for T, N, _, H, reverse in LSTMS:
        options = {"reverse": reverse, "length": 8 * H * T, "gradient": H < 4}
        for bias in ((3 * H,), None):
            yield case((T, N, 3 * H), (N, H), (3 * H, H), bias, **options)


def gru_grad_cases():
    """With every choice of the outputs that a gradient came for."""
    for T, N, _, H, reverse in LSTMS:
        inputs = ((3 * H, H), (N, H), (T, N, H), uniform(0.1, 0.9, (T, 4, N, H)))
        states, gates = (T, N, H), (T, 4, N, H)
        for g in ((states, None), (states, gates), (None, gates)):
            yield case(*inputs, *g, reverse=reverse, length=16 * H * T, gradient=H * T < 6)


# The leading dimensions, L, S, E, V. The gradients of the small ones are checked.
ATTENTIONS = [
    ((), 3, 4, 2, 3),
    ((2,), 4, 3, 2, 1),
    ((1, 2), 1, 1, 1, 2),
    ((2, 1), 0, 3, 2, 2),
    ((0, 2), 3, 3, 2, 2),
    ((2, 2), 50, 50, 9, 17),
    ((3,), 30, 140, 16, 5),
]


def attention_cases(backward):
    for batch, L, S, E, V in ATTENTIONS:
        q, k, v, out, lse = (*batch, L, E), (*batch, S, E), (*batch, S, V), (*batch, L, V), (*batch, L)
        for is_causal in (False, True):
            options = {"is_causal": is_causal, "scale": 0.4, "length": 4 * (S + E + V), "gradient": S < 5}
            if not backward:  # what is hidden may be multiplied by 0, or left out
                yield case(q, k, v, special=not is_causal, **options)
                continue
            options.update(length=options["length"] * (L + 1), gradient=S < 4)
            shifts = uniform(2.0, 3.0, lse)  # near the logarithms of the sums
            yield case(out, q, k, v, out, shifts, None, **options)
            if S < 5:
                yield case(out, q, k, v, out, shifts, lse, **options)


def class_loss_cases():
    """Cross-entropy and the negative log-likelihood, plain, and with weights, smoothing and a reduction."""
    cases = {"cross_entropy": [], "cross_entropy_grad": [], "nll_loss": [], "nll_loss_grad": []}
    for x, target in cross_entropy_cases():
        weight, length = uniform(0.5, 2.0, x[1:]), math.prod(x) + x[1]
        has_mean = x[0] > 0 and x[1] > 1  # else it is over nothing, NaN, which has no differences
        for smoothing, weights, reduction in (
            (0.0, None, "none"),
            (0.0, None, "mean"),
            (0.2, None, "sum"),
            (0.2, weight, "none"),
            (0.1, weight, "mean"),
        ):
            gradient = reduction != "mean" or has_mean
            options = {"ignore_index": 0, "reduction": reduction, "length": length, "gradient": gradient}
            g = x[:1] if reduction == "none" else ()
            smooth = {"label_smoothing": smoothing, **options}
            cases["cross_entropy"].append(case(x, target, weights, **smooth))
            cases["cross_entropy_grad"].append(case(g, x, target, weights, **smooth))
            cases["nll_loss"].append(case(x, target, weights, **options))
            cases["nll_loss_grad"].append(case(g, x, target, weights, **options))
    return cases


ERRORS = ["mse_loss", "l1_loss", "huber_loss", "binary_cross_entropy_with_logits"]
DIVERGENCES = ["binary_cross_entropy", "kl_div", "kl_div_of_logs"]


def loss_cases(inputs, targets, backward):
    """Each and all losses of elements, of ``inputs`` and ``targets``, both f(shape)."""
    cases = []
    for shape in [s for s in SHAPES + LARGER if 0 not in s]:
        length = max(1, math.prod(shape))
        for reduction in ("mean", "sum", "none"):
            g = ([shape] if reduction == "none" else [()]) if backward else []
            arrays = (*g, inputs(shape), targets(shape))
            cases.append(case(*arrays, reduction=reduction, scale=0.7, delta=1.1, length=length))
    return cases


def error_cases(backward):
    """Inputs and targets that are apart, so that no absolute error is at a kink, nor at that of Huber's loss;
    and small, so that the differences of large sums have digits."""

    def signed(shape):
        return lambda rng: (
            (rng.uniform(0.4, 0.8, shape) + rng.integers(0, 2, shape)) * rng.choice([-1, 1], shape)
        )

    return loss_cases(signed, lambda shape: uniform(0.0, 0.2, shape), backward)


def weighted_logits_cases(backward):
    """Weights of one number, of the last dimension, of another one, and of all."""
    cases = []
    for shape, weights in (
        ((7,), ()),
        ((5, 3), (3,)),
        ((2, 3, 4), (3, 1)),
        ((3, 5), (3, 5)),
        ((33, 17), (1, 17)),
    ):
        for reduction in ("mean", "sum", "none"):
            g = ([shape] if reduction == "none" else [()]) if backward else []
            arrays = (*g, shape, uniform(0.0, 1.0, shape), uniform(0.5, 3.0, weights))
            cases.append(case(*arrays, reduction=reduction, length=math.prod(shape)))
    return cases


def divergence_cases(backward):
    probabilities = functools.partial(uniform, 0.1, 0.9)
    return loss_cases(probabilities, probabilities, backward)


# The shape of the indices, columns, rows.
EMBEDDINGS = [((4, 2), 3, 5), ((7,), 130, 6), ((40,), 5, 1), ((200,), 20, 3), ((0,), 4, 3), ((), 2, 3)]

# A tensor, its diagonal, and which one that is.
DIAGONALS = [
    ((3, 4), (3,), {"offset": 1, "dim1": 0, "dim2": 1}),
    ((3, 3), (2,), {"offset": -1, "dim1": 0, "dim2": 1}),
    ((3, 2, 4), (2, 3), {"offset": 0, "dim1": 2, "dim2": 0}),
    ((2, 3), (0,), {"offset": 5, "dim1": 0, "dim2": 1}),
    ((0, 3), (0,), {"offset": 0, "dim1": 0, "dim2": 1}),
]

CASES = {
    # arithmetic
    **each(["add", "sub", "mul"], TWO),
    "div": [case(c.inputs[0], uniform(0.5, 2.0, s)) for c, s in zip(TWO, SHAPES, strict=False)]
    + [case((3, 1), uniform(0.5, 2, (4,)))],
    "floor_divide": [case(s, uniform(0.5, 2.0, s)) for s in SHAPES],
    "remainder": [case(uniform(0.1, 0.9, s), uniform(1.0, 2.0, s)) for s in SHAPES]
    + [case(uniform(2, 3, 4), 7.0)],
    "pow": [case(uniform(0.5, 2.0, s), s) for s in SHAPES]
    + [case((3, 4), e, length=9) for e in (0, 1, 2, 3)]
    + [case(uniform(0.5, 2.0, 5), -1.5), case(2.0, (5,))],
    **each(["maximum", "minimum"], [case(s, s) for s in SHAPES + LARGER] + [case((3, 1), (4,))]),
    # functions of one variable
    **each(["neg", "abs", "square", "exp", "expm1", "sin", "cos", "atan", "sinh", "cosh", "erf"], ONE),
    **each(["sigmoid", "tanh", "relu", "silu", "gelu", "gelu_tanh", "sign", "clone", "contiguous"], ONE),
    "to_nhwc": [case((2, 3, 4, 5)), case((1, 1, 3, 2)), case((3, 70, 9, 8)), case((0, 2, 3, 3))],
    "gelu_and_slope": ONE,
    **each(["floor", "ceil", "round", "trunc", "isnan", "isinf", "isfinite"], ONE),
    **each(["log", "log2", "log10", "sqrt"], POSITIVE),
    **each(["log1p", "asin", "acos", "tan", "atanh"], INSIDE),
    **each(["asinh", "exp2"], ONE),
    "acosh": [case(uniform(1.2, 3.0, s)) for s in SHAPES + LARGER],
    **each(["atan2", "hypot"], [case(uniform(0.2, 2.0, s), s) for s in SHAPES]),
    "fmod": [case(uniform(0.1, 0.9, s), uniform(1.0, 2.0, s)) for s in SHAPES]
    + [case(uniform(-3, -2, 4), 7.0)],
    **each(["relu_grad", "tanh_grad", "sigmoid_grad"], [case(s, s) for s in SHAPES + LARGER]),
    **each(["silu_grad", "gelu_grad", "gelu_tanh_grad"], [case(s, s) for s in SHAPES + LARGER]),
    "leaky_relu": [case(s, negative_slope=0.1) for s in SHAPES + LARGER],
    "leaky_relu_grad": [case(s, s, negative_slope=0.1) for s in SHAPES + LARGER],
    "abs_grad": [case(s, s) for s in SHAPES + LARGER],
    "divisor_grad": [case(s, s, uniform(0.5, 2.0, s)) for s in SHAPES + LARGER]
    + [case((3, 4), (4,), uniform(1, 2, (3, 1)))],
    "larger_share": [case(s, s, s) for s in SHAPES + LARGER] + [case((3, 4), (4,), (3, 1))],
    "clamp_grad": [case(s, s, min=-0.5, max=0.5) for s in SHAPES + LARGER]
    + [case((3, 4), (3, 4), min=None, max=0.3)],
    # Differences of what is rounded say nothing of a gradient.
    "cast": [case(s, dtype=np.dtype(t)) for s in SHAPES for t in (np.float64, np.int64)]
    + [case(s, dtype=np.dtype(t), gradient=False) for s in SHAPES for t in (np.float16, np.float32)],
    "hardtanh": [case(s, min=-0.5, max=0.7) for s in SHAPES + LARGER],
    "clamp": [case(s, min=lo, max=hi) for s in SHAPES for lo, hi in ((-0.5, 0.5), (None, 0.3), (0.0, None))],
    # comparison, logic, selection
    **each(["eq", "ne", "lt", "le", "gt", "ge"], TWO[:-2] + INTEGERS),
    **each(["logical_and", "logical_or", "logical_xor"], BOOLS + INTEGERS),
    **each(["bitwise_and", "bitwise_or", "bitwise_xor"], BOOLS + INTEGERS),
    **each(["logical_not", "bitwise_not"], [case(bools(s)) for s in SHAPES]),
    "where": [case(bools(s), s, s) for s in SHAPES] + [case(bools((3, 1)), (4,), ())],
    # reductions
    **each(["sum", "sum_of_squares", "prod"], reductions()),
    "mean": reductions(empty=False),
    **each(["amax", "amin"], reductions(apart, empty=False)),
    "var": [case(*one.inputs, **one.attrs, divisor=2.5) for one in reductions(empty=False)],
    "square_root": POSITIVE,
    "extremum_grad": extremum_grad_cases(),
    **each(["any", "all"], reductions(bools)),
    **each(
        ["argmax", "argmin"],
        [
            case((7,), dim=0, keepdim=False),
            case((3, 5), dim=1, keepdim=True),
            case((3, 5), dim=None, keepdim=False),
        ],
    ),
    "cumsum": [
        case(s, dim=dim, reverse=reverse, length=s[dim])
        for s in [*SHAPES[1:], (19, 6), (3, 4, 70)]
        for dim in {0, len(s) - 1}
        for reverse in (False, True)
    ],
    "cumprod": [case(s, dim=d, length=s[d]) for s in [*SHAPES[1:], (3, 9)] for d in {0, len(s) - 1}],
    "argsort": [case(s, dim=0) for s in SHAPES[1:]],
    # shape
    "reshape": [
        case((6,), shape=(2, 3)),
        case((2, 3), shape=(3, -1)),
        case((0, 3), shape=(3, 0)),
        case((), shape=(1,)),
    ],
    "permute": [case((2, 3, 4), dims=(2, 0, 1)), case((3, 4), dims=(1, 0)), case((0, 2), dims=(1, 0))],
    "broadcast_to": [
        case((3, 1), shape=(2, 3, 4)),
        case((), shape=(2,)),
        case((1,), shape=(0,)),
        case((1, 4), shape=(3, 4)),
    ],
    "flip": [case((3, 4), dims=(0, 1)), case((3, 4), dims=(1,)), case((0, 2), dims=(0,))],
    "diagonal": [case(shape, **options) for shape, _, options in DIAGONALS],
    "diagonal_backward": [case(line, shape=shape, **options) for shape, line, options in DIAGONALS],
    "concat": [case((2, 3), (4, 3), dim=0), case((2, 3), dim=1), case((0, 3), (2, 3), (1, 3), dim=0)],
    "pad": [case((2, 3), widths=((1, 0), (2, 3)), value=1.5), case((0,), widths=((1, 1),), value=0.0)],
    # indexing
    "getitem": [case(shape, index=index) for shape, index in indices()],
    "scatter_index": [
        case(np.zeros(shape)[index].shape, index=index, shape=shape, length=4) for shape, index in indices()
    ],
    "take_along_dim": [
        case((3, 4), integers(0, 4, (3, 2)), dim=1),
        case((3, 4), integers(0, 3, (5, 4)), dim=0),
    ],
    "put_along_dim": [
        case((3, 2), integers(0, 4, (3, 2)), dim=1, shape=(3, 4), length=2),
        case((2, 70, 3), integers(-5, 5, (2, 70, 3)), dim=1, shape=(2, 5, 3), length=70),
        case((0, 3), integers(0, 4, (0, 3)), dim=0, shape=(2, 3), length=1),
    ],
    "embedding": [
        case((5, 3), integers(0, 5, (4, 2))),
        case((6, 8), integers(0, 6, (17,)), padding_idx=2, gradient=False),  # 0 for row 2
        case((3, 0), integers(0, 3, (2,))),
        case((3, 4), integers(0, 3, (0, 2))),
    ],
    "embedding_grad": [
        case((*shape, columns), integers(0, rows, shape), num_embeddings=rows, length=math.prod(shape), **pad)
        for shape, columns, rows in EMBEDDINGS
        for pad in ({}, {"padding_idx": 0})
    ],
    "dropout": [case(s, p=p, seed=3, offset=2**40) for s in SHAPES + LARGER for p in (0.25, 0.5)]
    + [case((5,), p=1.0, seed=2**64 - 1, offset=0)],
    # the heavy ones
    "matmul": [
        case((3, 4), (4, 5), length=4),
        case((17, 33), (33, 9), length=33),
        case((1, 1), (1, 1), length=1),
        case((65, 7), (7, 130), length=7),
        case((36, 40), (40, 68), length=40),
        case((1, 40), (40, 33), length=40),
        case((2, 33, 40), (40, 1), length=40),
        case((3, 520), (520, 2), length=520),
        case((2, 3, 4), (4, 5), length=4),
        case((2, 1, 3, 4), (5, 4, 2), length=4),
        case((2, 0), (0, 3), length=1),
        case((0, 2), (2, 3), length=2),
        case((0, 2, 3), (0, 3, 4), length=3),
    ],
    "linear": [
        case((3, 4), (5, 4), (5,), length=4),
        case((17, 33), (9, 33), None, length=33),
        case((2, 3, 40), (37, 40), (37,), length=40),
        case((1, 40), (33, 40), (33,), length=40),
        case((40, 40), (1, 40), (1,), length=40),
        case((36, 520), (68, 520), (68,), length=520),
        case((2, 0), (3, 0), (3,), length=1),
        case((0, 4, 2), (3, 2), (3,), length=2),
    ],
    "linear_of_repeated": [
        case((*n, K), (N, K), bias, None, length=K + 1)
        for n, K, N in (((3,), 4, 5), ((2, 3), 0, 3), ((0, 2), 3, 2))
        for bias in ((N,), None)
    ]
    + [  # the rows are equal, whatever their numbers
        case(uniform(0.5, 0.5, (4, 3, K)), (N, K), (N,), integers(0, 3, (4, 3)), length=K + 1, gradient=False)
        for K, N in ((4, 5), (17, 33))
    ],
    "linear_weight_grad": [
        case((3, 4), (3, 5), length=3),
        case((2, 33, 9), (2, 33, 17), length=66),
        case((130, 65), (130, 7), length=130),
        case((0, 4), (0, 2), length=1),
    ],
    "attention": list(attention_cases(backward=False)),
    "attention_grad": list(attention_cases(backward=True)),
    "lstm": list(lstm_cases()),
    "lstm_grad": list(lstm_grad_cases()),
    "lstm_weight_grad": list(lstm_weight_grad_cases()),
    "rnn": list(rnn_cases(backward=False)),
    "rnn_grad": list(rnn_cases(backward=True)),
    "gru": list(gru_cases()),
    "gru_grad": list(gru_grad_cases()),
    "conv2d": conv_cases("forward"),
    "conv2d_relu": conv_cases("forward"),
    "conv2d_input_grad": conv_cases("input"),
    "conv2d_weight_grad": conv_cases("weight"),
    "max_pool2d": max_pool_cases("forward"),
    "max_pool2d_gather": max_pool_cases("gather"),
    "max_pool2d_input_grad": max_pool_cases("input"),
    "avg_pool2d": avg_pool_cases(backward=False),
    "avg_pool2d_input_grad": avg_pool_cases(backward=True),
    "adaptive_avg_pool2d": [case(s, size=size, length=49) for s, size in ADAPTIVE],
    "adaptive_avg_pool2d_input_grad": [
        case((*s[:2], *size), input_size=s[2:], length=49) for s, size in ADAPTIVE
    ],
    "unfold": [case(shape, **options) for shape, _, options in FOLDS],
    "fold": [case(columns, size=shape[2:], length=9, **options) for shape, columns, options in FOLDS],
    **class_loss_cases(),
    **each(ERRORS, error_cases(False)),
    **each([f"{name}_grad" for name in ERRORS], error_cases(True)),
    **each(DIVERGENCES, divergence_cases(False)),
    **each([f"{name}_grad" for name in DIVERGENCES], divergence_cases(True)),
    "weighted_logits_loss": weighted_logits_cases(False),
    "weighted_logits_loss_grad": weighted_logits_cases(True),
    **norm_cases(),
    **each(["softmax", "log_softmax"], softmax_cases(1)),
    **each(["softmax_grad", "log_softmax_grad"], softmax_cases(2)),
    "logsumexp": [case(s, length=s[-1]) for s in ROWS],
    "logsumexp_grad": [case(s[:-1], s, uniform(1.0, 2.0, s[:-1]), length=s[-1]) for s in ROWS],
}

# Gradients in which infinite and finite factors meet, whose order decides between infinity and NaN; and
# norms, whose mean of a row with an infinity is NaN where it is put together from those of parts.
NO_SPECIAL_VALUES = (
    *("attention_grad", "log_softmax_grad", "cross_entropy_grad"),
    *("batch_norm", "batch_norm_grad", "group_norm", "group_norm_grad", "layer_norm", "layer_norm_grad"),
)
for name in NO_SPECIAL_VALUES:
    CASES[name] = [one._replace(special=False) for one in CASES[name]]

ELSEWHERE = {
    "conv2d_pooled": "tests/test_ops_conv_relu.py: which pixel of a window wins is decided by rounding",
    "gate": "tests/test_nn_containers_and_hooks.py: it only stands in the graph",
    "max_pool2d_indices": "tests/test_ops_pool.py: it gives positions",
    "setitem": "tests/test_ops_index.py: it writes into its input",
    "to_device": "tests/test_dispatch.py: its output is on another device",
}


# Enough elements for the CPU kernels that leave less to NumPy.
MANY = (182, 183)


def large(*inputs, **attrs):
    return [case(*inputs, gradient=False, **attrs)]


LARGE = {
    **each(["add", "sub", "mul", "maximum", "minimum"], large(MANY, MANY) + large(MANY, (182, 1))),
    **each(["eq", "ne", "lt", "le", "gt", "ge"], large(MANY, MANY) + large(MANY, (183,)) + large(MANY, 0.5)),
    "div": large(MANY, uniform(0.5, 2.0, MANY)),
    **each(["neg", "abs", "square", "relu", "contiguous"], large(MANY)),
    "sqrt": large(uniform(0.2, 3.0, MANY)),
    "pow": [one for e in (2, 3) for one in large(MANY, e)] + large(uniform(0.5, 2.0, MANY), -1),
    "abs_grad": large(MANY, MANY),
    "divisor_grad": large(MANY, MANY, uniform(0.5, 2.0, MANY)),
    "larger_share": large(MANY, MANY, (183,)),
    "clamp": large(MANY, min=-0.5, max=0.5),
    "clamp_grad": large(MANY, MANY, min=-0.5, max=0.5),
    "hardtanh": large(MANY, min=-0.5, max=0.5),
}


# None: with the 16-bit floats too, for the kernels that take them.
DTYPES = {
    "matmul": "f2 f4 f8",
    **each(["attention", "attention_grad"], None),
    **each(["conv2d", "conv2d_relu", "conv2d_input_grad", "conv2d_weight_grad"], None),
    **each(["softmax", "softmax_grad", "log_softmax", "log_softmax_grad"], None),
    **each(["cross_entropy", "cross_entropy_grad", "embedding", "embedding_grad", "dropout"], None),
    **each(["sum", "amax", "amin", "avg_pool2d", "avg_pool2d_input_grad"], None),
    **each(["max_pool2d", "max_pool2d_gather", "max_pool2d_input_grad"], None),
    **each(["layer_norm", "layer_norm_grad", "group_norm", "group_norm_grad"], None),
    **each(["batch_norm", "batch_norm_grad", "batch_norm_inference", "batch_norm_weight_grad"], None),
    **each(["mean", "var", "extremum_grad", "argmax", "argmin", "cumsum"], None),
    **each(["cast", "scatter_index", "put_along_dim"], None),
}


def test_the_table_names_every_op():
    assert sorted(CASES | ELSEWHERE) == BUILT_IN


@pytest.mark.parametrize("name", sorted(CASES))
def test_op(name, device):
    op = mg.get_op(name)
    dtypes = DTYPES.get(name, "f4 f8")
    gradients = device.type == "cpu"
    cases = CASES[name] + (LARGE.get(name, []) if device.type == "cpu" else [])
    check_op(op, cases, devices=[device], dtypes=dtypes, seed=0, elements=12, gradients=gradients)

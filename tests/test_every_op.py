"""Every op that there is: its kernels against its reference, its gradient, its second gradient, by check_op.

The table must name all ops: a new op without cases fails here.
"""

import math

import numpy as np
import pytest
from layer_cases import (
    ADAPTIVE,
    DIVERGENCES,
    ERRORS,
    FOLDS,
    ROWS,
    attention_cases,
    avg_pool_cases,
    class_loss_cases,
    conv_cases,
    divergence_cases,
    error_cases,
    gru_cases,
    gru_grad_cases,
    lstm_cases,
    lstm_grad_cases,
    lstm_weight_grad_cases,
    max_pool_cases,
    norm_cases,
    resample_cases,
    rnn_cases,
    softmax_cases,
    weighted_logits_cases,
)
from op_inputs import LARGER, SHAPES, apart, bools, integers, uniform

import minigrad as mg
import minigrad.data
import minigrad.linalg  # this and the next register the ops that the top level does not show
import minigrad.nn.functional
from minigrad.op import _ops
from minigrad.testing import case, check_op

BUILT_IN = sorted(name for name, op in _ops.items() if op.reference.__module__.startswith("minigrad"))


def each(names, cases):
    return dict.fromkeys(names, cases)


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
    **each(["log", "log2", "log10", "sqrt", "lgamma"], POSITIVE),
    "erfinv": [case(uniform(-0.9, 0.9, s)) for s in SHAPES],
    "polygamma": [
        case(uniform(low, low + 0.8, s), n=n) for low in (-2.9, 0.1, 8) for s in SHAPES for n in range(4)
    ],
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
    **each(["bitwise_left_shift", "bitwise_right_shift"], INTEGERS),
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
    **each(
        ["linear", "linear_relu"],
        [
            case((3, 4), (5, 4), (5,), length=4),
            case((17, 33), (9, 33), None, length=33),
            case((2, 3, 40), (37, 40), (37,), length=40),
            case((1, 40), (33, 40), (33,), length=40),
            case((40, 40), (1, 40), (1,), length=40),
            case((36, 520), (68, 520), (68,), length=520),
            case((2, 0), (3, 0), (3,), length=1),
            case((0, 4, 2), (3, 2), (3,), length=2),
        ],
    ),
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
    "resample": resample_cases(),
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
    **dict.fromkeys(
        ["cholesky", "det", "inv", "logabsdet", "solve"], "tests/test_linalg.py: not every matrix will do"
    ),
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
    **each(["matmul", "attention", "attention_grad"], None),
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
    check_op(op, cases, devices=[device], dtypes=dtypes, seed=0, elements=1, gradients=gradients)

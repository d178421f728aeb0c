"""Cases of the ops of layers: convolution, pooling, normalisation, recurrence, attention and losses."""

import functools
import math

import numpy as np
from op_inputs import LARGER, SHAPES, apart, integers, normal, uniform

import minigrad as mg
from minigrad.ops.resample import BORDERS
from minigrad.testing import case


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
        ((2, 8, 5, 4), (16, 8, 3, 2), 1, (1, 0), 1, 1),  # channels in multiples of 16 bytes
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
    ((2, 3, 5, 7), (5, 7), (1, 1), (0, 0), (1, 1), (1, 1)),
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
    ((2, 2), 1, 1, 1, 2),
    ((2, 1), 0, 3, 2, 2),
    ((0, 2), 3, 3, 2, 2),
    ((1, 2), 50, 50, 9, 17),
    ((2,), 30, 140, 16, 5),
]


def attention_cases(backward):
    for batch, L, S, E, V in ATTENTIONS:
        q, k, v, out, lse = (*batch, L, E), (*batch, S, E), (*batch, S, V), (*batch, L, V), (*batch, L)
        for is_causal in (False, True):
            options = {"is_causal": is_causal, "scale": 0.4, "length": 4 * (S + E + V), "gradient": S < 5}
            mask = uniform(-1.0, 1.0, (1, S) if is_causal else (L, S))
            weighting = {"dropout_p": 0.3, "seed": 7, "offset": 3} if S % 2 else {}
            if not backward:  # what is hidden may be multiplied by 0, or left out
                yield case(q, k, v, None, special=not is_causal, **options)
                yield case(q, k, v, mask, special=False, **weighting, **options)
                continue
            options.update(length=options["length"] * (L + 1), gradient=S < 4)
            shifts = uniform(2.0, 3.0, lse)  # near the logarithms of the sums
            yield case(out, q, k, v, out, shifts, None, None, **options)
            yield case(out, q, k, v, out, shifts, None, mask, **weighting, **options)
            if S < 5:
                yield case(out, q, k, v, out, shifts, lse, None, **options)


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


def resample_cases():
    """Maps by eighths, which float32 computes without rounding: no place is near two pixels by chance."""

    def maps(count):
        return lambda rng: rng.integers(-16, 17, (count, 2, 3)) / 8.0

    return [
        case(shape, maps(shape[0]), size=size, border=border, fill=0.5, bilinear=bilinear, gradient=False)
        for shape, size in (((2, 3, 7, 9), (5, 6)), ((3, 1, 1, 4), (9, 3)), ((1, 2, 21, 17), (18, 19)))
        for border in BORDERS
        for bilinear in (False, True)
    ] + [
        case((0, 3, 4, 4), (0, 2, 3), size=(2, 2), gradient=False),
        case((2, 0, 4, 4), (2, 2, 3), size=(3, 2), gradient=False),
        case((2, 1, 4, 4), (2, 2, 3), size=(0, 2), gradient=False),
    ]

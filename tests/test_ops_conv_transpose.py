"""Transposed convolution: the definition as loops, gradients of both orders, bad arguments."""

import numpy as np
import pytest

import minigrad as mg
import minigrad.nn.functional as F


def by_definition(x, weight, bias, stride, padding, output_padding, groups, dilation):
    """Each pixel, one at a time, adds its multiple of each kernel to the output, in float64."""
    (n, c_in, h, w), (_, per_group, kh, kw) = x.shape, weight.shape
    (sh, sw), (ph, pw), (dh, dw) = stride, padding, dilation
    oh = (h - 1) * sh - 2 * ph + dh * (kh - 1) + output_padding[0] + 1
    ow = (w - 1) * sw - 2 * pw + dw * (kw - 1) + output_padding[1] + 1
    out = np.zeros((n, per_group * groups, oh, ow))
    for b, c, i, j in np.ndindex(x.shape):
        first = c // (c_in // groups) * per_group
        for k, u, v in np.ndindex(per_group, kh, kw):
            row, column = i * sh + u * dh - ph, j * sw + v * dw - pw
            if 0 <= row < oh and 0 <= column < ow:
                out[b, first + k, row, column] += x[b, c, i, j] * weight[c, k, u, v]
    return out if bias is None else out + bias[:, None, None]


# input, weight, stride, padding, output_padding, groups, dilation
TABLE = [
    ((2, 3, 4, 5), (3, 4, 3, 3), (1, 1), (0, 0), (0, 0), 1, (1, 1)),
    ((1, 2, 4, 3), (2, 3, 3, 2), (2, 3), (1, 0), (1, 2), 1, (1, 1)),
    ((2, 4, 3, 4), (4, 3, 3, 3), (2, 1), (1, 2), (0, 0), 2, (1, 2)),
    ((1, 3, 3, 3), (3, 2, 3, 3), (2, 2), (1, 1), (1, 1), 3, (1, 1)),
    ((2, 5, 3, 4), (5, 2, 1, 1), (1, 1), (0, 0), (0, 0), 1, (1, 1)),
    ((1, 2, 3, 2), (2, 2, 2, 2), (3, 4), (0, 0), (2, 3), 1, (1, 1)),  # stride beyond the kernel
    ((1, 2, 5, 4), (2, 2, 3, 2), (1, 2), (2, 0), (2, 2), 1, (3, 3)),  # output_padding of the stride or more
    ((1, 1, 6, 6), (1, 1, 3, 3), (1, 1), (2, 3), (0, 0), 1, (1, 1)),  # padding beyond the kernel
    ((1, 17, 4, 3), (17, 16, 3, 3), (2, 2), (1, 1), (1, 1), 1, (1, 1)),
]
NAMES = ("stride", "padding", "output_padding", "groups", "dilation")


@pytest.mark.parametrize("case", TABLE)
def test_value(case, device, rng):
    x, weight, *rest = case
    shapes = x, weight, (weight[1] * rest[3],)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    out = F.conv_transpose2d(*(mg.tensor(a, device=device) for a in arrays), *rest)
    wide = [a.astype(np.float64) for a in arrays]
    magnitude = np.sqrt(by_definition(*(a * a for a in wide), *rest))
    length = weight[0] * weight[2] * weight[3] // rest[3] + 1
    mg.testing.assert_close(out, by_definition(*wide, *rest), length, magnitude=magnitude)


@pytest.mark.parametrize("case", TABLE[:-1])
def test_gradients_of_both_orders(case, check_gradients):
    x, weight, *rest = case
    options = dict(zip(NAMES, rest, strict=True))
    bias = (weight[1] * options["groups"],)
    check_gradients(lambda x, w, b: F.conv_transpose2d(x, w, b, **options) ** 2, x, weight, bias)


@pytest.mark.parametrize("case", TABLE)
def test_it_is_the_transpose_of_conv2d(case, rng):
    """<conv_transpose2d(x), y> = <x, conv2d(y)>, but for what an output padding of a stride adds."""
    x_shape, weight_shape, stride, padding, output_padding, groups, dilation = case
    x, weight = mg.tensor(rng.standard_normal(x_shape)), mg.tensor(rng.standard_normal(weight_shape))
    out = F.conv_transpose2d(x, weight, None, stride, padding, output_padding, groups, dilation)
    y = mg.tensor(rng.standard_normal(out.shape))
    there = F.conv2d(y, weight, None, stride, padding, dilation, groups)[:, :, : x_shape[2], : x_shape[3]]
    np.testing.assert_allclose((out * y).sum().item(), (x * there).sum().item(), rtol=1e-10)


def test_a_single_image_and_an_empty_batch(device):
    x, weight = mg.randn(3, 4, 5, device=device), mg.randn(3, 2, 3, 3, device=device)
    out = F.conv_transpose2d(x, weight, stride=2)
    assert out.shape == (2, 9, 11)
    np.testing.assert_array_equal(
        out.to("cpu").numpy(), F.conv_transpose2d(x.unsqueeze(0), weight, stride=2)[0].to("cpu").numpy()
    )
    x = mg.ones(0, 3, 4, 5, device=device, requires_grad=True)
    weight = weight.detach().requires_grad_()
    out = F.conv_transpose2d(x, weight, stride=2)
    out.sum().backward()
    assert out.shape == (0, 2, 9, 11) and x.grad.shape == x.shape
    assert weight.grad.shape == weight.shape and (weight.grad == 0.0).all().item()


def test_views_as_inputs(rng):
    x = mg.tensor(rng.standard_normal((2, 5, 4, 3))).permute(0, 3, 1, 2)[..., ::-1]
    weight = mg.tensor(rng.standard_normal((4, 3, 3, 6))).transpose(0, 1)[:, :, :, ::2]
    rest = (2, 2), (1, 0), (0, 1), 1, (1, 1)
    out = F.conv_transpose2d(x, weight, None, *rest)
    np.testing.assert_allclose(out.numpy(), by_definition(x.numpy(), weight.numpy(), None, *rest), rtol=1e-11)


X, W = mg.ones(1, 4, 5, 5), mg.ones(4, 2, 3, 3)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: F.conv_transpose2d(X, mg.ones(3, 8, 3, 3)),
            ValueError,
            r"conv_transpose2d: weight expects 3 input channels, input has 4 .*\(3, 8, 3, 3\)",
        ),
        (
            lambda: F.conv_transpose2d(X, W, mg.ones(3)),
            ValueError,
            r"bias must have shape \(2,\), got \(3,\)",
        ),
        (lambda: F.conv_transpose2d(X, W, mg.ones(2), groups=2), ValueError, r"bias .*\(4,\), got \(2,\)"),
        (lambda: F.conv_transpose2d(X, W, groups=3), ValueError, "4 input channels .* 3 groups"),
        (
            lambda: F.conv_transpose2d(X, W, groups=0),
            ValueError,
            "groups must be an integer of at least 1, got 0",
        ),
        (lambda: F.conv_transpose2d(X, W, stride=0), ValueError, "conv_transpose2d: stride .* got 0"),
        (lambda: F.conv_transpose2d(X, W, padding=-1), ValueError, "padding .* got -1"),
        (lambda: F.conv_transpose2d(X, W, padding="same"), ValueError, "padding .* got 'same'"),
        (lambda: F.conv_transpose2d(X, W, dilation=(1, 2, 3)), ValueError, r"dilation .*\(1, 2, 3\)"),
        (lambda: F.conv_transpose2d(X, W, output_padding=-1), ValueError, "output_padding .* got -1"),
        (lambda: F.conv_transpose2d(X, W, output_padding=1), ValueError, r"less than the stride.*\(1, 1\)"),
        (lambda: F.conv_transpose2d(X, W, stride=2, output_padding=(1, 2)), ValueError, r"got \(1, 2\) with"),
        (lambda: F.conv_transpose2d(X, W, padding=4), ValueError, r"would have size \(-1, -1\)"),
        (lambda: F.conv_transpose2d(mg.ones(4, 5), W), ValueError, r"4 dimensions.*\(4, 5\)"),
        (lambda: F.conv_transpose2d(X, mg.ones(4, 2, 3)), ValueError, r"4 dimensions.*\(4, 2, 3\)"),
        (lambda: F.conv_transpose2d(mg.ones(1, 4, 0, 5), W), ValueError, "at least size 1"),
        (lambda: F.conv_transpose2d(X, mg.ones(4, 2, 3, 0)), ValueError, "at least size 1"),
        (lambda: F.conv_transpose2d(X, W.double()), TypeError, "input is float32, weight is float64"),
        (lambda: F.conv_transpose2d(X, W, mg.ones(2).double()), TypeError, "bias is float64"),
    ],
)
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()

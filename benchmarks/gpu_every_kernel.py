"""Launches every CUDA kernel once at small sizes, on a card or on the simulator, for a memory checker.

    compute-sanitizer --tool memcheck --error-exitcode 1 python benchmarks/gpu_every_kernel.py
    python benchmarks/gpu_every_kernel.py --device sim

Sizes are odd, so that the last block of each grid hangs over the end. Results are compared with NumPy's
references in float64. A kernel that no call here reaches is an error, and so is a wrong result. Of the
elementwise kernels, all generated from the same two texts, those in ``ELEMENTWISE`` stand for the others.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gpu_case import references
from gpu_kernel_calls import BATCHES, LADDERS, calls, calls_in_halves

import minigrad as mg
from minigrad.dtypes import BFLOAT16
from minigrad.kernels import cuda
from minigrad.kernels.channels_last import nchw
from minigrad.kernels.cuda.elementwise import Elementwise
from minigrad.kernels.launch import CudaKernel
from minigrad.kernels.source import computed_dtype

# Of one, two and three inputs, of numbers among them, and of bools in and out.
ELEMENTWISE = {"exp", "add", "clamp", "where", "lt", "relu", "relu_grad"}


def run(function: Callable[..., Any], arrays: list[np.ndarray], device: str) -> list[np.ndarray]:
    """The result, the gradients of its squares' sum, and, of max pooling, a gradient's gradient."""
    tensors = [mg.tensor(a, device=device, requires_grad=True) for a in arrays]
    y = function(*tensors)
    first = mg.autograd.grad((y * y).sum(), tensors, create_graph=True)
    second = mg.autograd.grad(sum((g * g).sum() for g in first), tensors)
    return [t.detach().numpy() for t in (y, *first, *second)]


def worst_error(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest relative error, by norm; infinite where something is not finite."""
    errors = [
        np.linalg.norm(f - e) / (np.linalg.norm(e) or 1.0) for f, e in zip(found, expected, strict=True)
    ]
    return max(float(e) if np.isfinite(e) else float("inf") for e in errors)


def watch(launched: set[CudaKernel]) -> None:
    """Note every kernel that is loaded, as it is for its first launch, from now on."""
    name_instance = CudaKernel.instance

    def instance(self: CudaKernel, types: Any) -> str:
        launched.add(self)
        return name_instance(self, types)

    CudaKernel.instance = instance  # type: ignore[method-assign]


def kernels_in(value: Any) -> Iterator[CudaKernel]:
    """The kernels in a module's variable: one, a table of them or of tables, or a representative function."""
    if isinstance(value, CudaKernel):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from kernels_in(part)
    elif isinstance(value, Elementwise) and value.name in ELEMENTWISE:
        yield from value.kernels
        yield from value.half_kernels if BFLOAT16 else ()


# What makes a kernel's arrays of float32. Factors of -1, 0 and 1 have exact products and sums in all three.
# bfloat16 goes as its bits.
TENSOR_CORE_FORMATS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "tf32": lambda x: x,
    "float16": lambda x: x.astype(np.float16),
    "bfloat16": lambda x: (x.view(np.uint32) >> 16).astype(np.uint16),
}


def multiply_on_tensor_cores(rung: str, device: mg.Device) -> list[str]:
    """Run a rung of matmul in every format, on rows and on columns, with tiles of every size, and K in parts;
    returns what is wrong."""
    module, xp, rng, wrong = getattr(cuda, f"matmul_{rung}"), device.xp, np.random.default_rng(0), []
    every = module.TILES if rung == "tensor_core" else module.COLUMNS
    tiles: list[dict[str, Any]] = [{"tile": tile} for tile in every]
    tiles += [{"tile": tile, "parts": 2} for tile in every[:2]]
    for dtype, encode in TENSOR_CORE_FORMATS.items():
        right = True
        for M, N, K in ((40, 56, 48), (37, 35, 41)):  # read where they lie, and copied first
            a, b = (rng.integers(-1, 2, shape).astype(np.float32) for shape in ((M, K), (K, N)))
            expected = encode(a @ b)
            for a_order, b_order, tile in itertools.product("CF", "CF", tiles):
                out = xp.empty(expected.shape, expected.dtype)
                factors = (xp.asarray(encode(x), order=order) for x, order in ((a, a_order), (b, b_order)))
                getattr(module, rung)(out, *factors, **tile)
                right &= np.array_equal(out if xp is np else out.get(), expected)
        told = f"matmul {rung} {dtype}"
        print(f"{told:40} {'exact' if right else 'wrong'}", flush=True)
        if not right:
            wrong.append(told)
    return wrong


# Channels, groups, rows of a tile; the sums of the last are cut into parts.
TENSOR_CORE_LAYERS = ((9, 1, 32), (40, 1, 64), (70, 1, 128), (64, 16, 32), (72, 2, 64), (264, 1, 64))
# Channels of input and output; of the last two, too.
POINTWISE_LAYERS = ((9, 70), (24, 72), (1032, 8), (8, 1032))


def convolve_on_tensor_cores(device: mg.Device) -> list[str]:
    """Run convolution and its gradients in every format and tile; returns what is wrong."""
    xp, rng, wrong = device.xp, np.random.default_rng(0), []
    forward, of_weight = cuda.conv2d_tensor_core, cuda.conv2d_tensor_core_weight_grad
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 1)}
    numbers = *options["stride"], *options["padding"], *options["dilation"]
    for channels, groups, tile in TENSOR_CORE_LAYERS:
        options["groups"] = groups
        shapes = (1, channels, 5, 6), (channels, channels // groups, 3, 2), (1, channels, 3, 5)
        x, w, g = (mg.tensor(rng.integers(-1, 2, shape).astype(np.float32)) for shape in shapes)
        expected = (
            mg.get_op("conv2d")(x, w, None, **options),
            mg.get_op("conv2d_input_grad")(g, w, input_size=(5, 6), **options),
            mg.get_op("conv2d_weight_grad")(g, x, kernel_size=(3, 2), **options),
        )
        pool = mg.nn.functional.max_pool2d(expected[0].relu(), 2)
        passes = (
            (functools.partial(forward.forward, tile=tile), (x, w), (None,)),
            (functools.partial(forward.input_grad, tile=tile), (g, w), ()),
            (of_weight.weight_grad, (g, x), ()),
        )
        for (name, encode), last in itertools.product(TENSOR_CORE_FORMATS.items(), (False, True)):
            right = True
            for (run, inputs, bias), result in zip(passes, expected, strict=True):
                bits = encode(result.numpy())
                out = empty(xp, bits.shape, bits.dtype, last)
                arrays = (placed(xp, encode(tensor.numpy()), last) for tensor in inputs)
                run(out, *arrays, *bias, *numbers, groups)
                right &= np.array_equal(out if xp is np else out.get(), bits)
            if groups == 1 and tile > 32:
                bits = encode(pool.numpy())
                out, taps = (empty(xp, bits.shape, dtype, last) for dtype in (bits.dtype, np.uint8))
                arrays = (placed(xp, encode(t.numpy()), last) for t in (x, w))
                forward.pooled((out, taps), *arrays, None, *numbers, groups, tile=tile)
                right &= np.array_equal(out if xp is np else out.get(), bits)
            told = f"conv2d tensor_core {name}, {channels} channels{' last' * last}, {groups} groups"
            print(f"{told:40} {'exact' if right else 'wrong'}", flush=True)
            wrong += [] if right else [told]
    return wrong


def convolve_by_wgmma(device: mg.Device) -> list[str]:
    """Run convolution, and its gradients, by wgmma in every format and tile, and with its sums in parts, with
    results that are contiguous and such that lie channels last; returns what is wrong."""
    xp, rng, wrong = device.xp, np.random.default_rng(0), []
    module, options = cuda.conv2d_wgmma, (1, 1, 1, 0, 1, 1, 1)
    shapes = (2, 24, 5, 6), (40, 24, 3, 2), (2, 40, 5, 5)
    x, w, g = (mg.tensor(rng.integers(-1, 2, shape).astype(np.float32)) for shape in shapes)
    attributes = {"stride": (1, 1), "padding": (1, 0), "dilation": (1, 1), "groups": 1}
    passes = (
        (module.forward, (x, w), (None,), mg.get_op("conv2d")(x, w, None, **attributes)),
        (
            module.input_grad,
            (g, w),
            (),
            mg.get_op("conv2d_input_grad")(g, w, input_size=(5, 6), **attributes),
        ),
        (
            module.weight_grad,
            (g, x),
            (),
            mg.get_op("conv2d_weight_grad")(g, x, kernel_size=(3, 2), **attributes),
        ),
    )
    tiles: list[dict[str, int]] = [{"tile": tile} for tile in module.COLUMNS]
    tiles += [{"tile": tile, "parts": 3} for tile in module.COLUMNS if tile <= module.MOST_IN_PARTS]
    for (name, encode), tile in itertools.product(TENSOR_CORE_FORMATS.items(), tiles):
        right = True
        some = passes[:2] if name == "tf32" or "parts" in tile else passes
        for (run, inputs, bias, result), last in itertools.product(some, (False, True)):
            stored = [encode(result.numpy())]
            if name == "float16" and run is module.weight_grad:
                stored.append(result.numpy())
            for bits in stored:
                out = empty(xp, bits.shape, bits.dtype, last)
                run(out, *(placed(xp, encode(t.numpy()), True) for t in inputs), *bias, *options, **tile)
                right &= np.array_equal(out if xp is np else out.get(), bits)
        told = f"conv2d wgmma {name}, {' '.join(f'{what} {n}' for what, n in tile.items())}"
        print(f"{told:40} {'exact' if right else 'wrong'}", flush=True)
        wrong += [] if right else [told]
    return wrong


def attend_in_every_tile(device: mg.Device) -> list[str]:
    """Run attention and its gradients with all sizes of tiles, whatever suits the card; returns what is
    wrong. All keys are the same, and values are 0 and 1 in turn, so that the outputs are exact."""
    xp, wrong = device.xp, []
    for D, tile in cuda.attention._forward:
        q, k, v, out = (xp.ones((1, 2, 150, D), np.float32) for _ in range(4))
        v *= xp.asarray(np.arange(150)[:, None] % 2, np.float32)
        cuda.attention.forward(out, xp.empty(q.shape[:3], np.float32), q, k, v, False, 1.0, tile)
        right = bool((out == 0.5).all())
        told = f"attention of {D} features, tiles of {tile}"
        print(f"{told:40} {'exact' if right else 'wrong'}", flush=True)
        wrong += [] if right else [told]
    value = np.arange(256)[:, None] % 2
    for D, tile in cuda.attention._grad_keys:
        q, k, v, g, out, dq, dk, dv = (xp.ones((1, 2, 256, D), np.float32) for _ in range(8))
        v *= xp.asarray(value, np.float32)
        lse = xp.empty(q.shape[:3], np.float32)
        cuda.attention.forward(out, lse, q, k, v, False, 1.0)
        cuda.attention.backward((dq, dk, dv), g, (q, k, v), out, lse, False, 1.0, tile)
        right = all(
            bool((abs(found - xp.asarray(expected, np.float32)) < 1e-3 * D).all())
            for found, expected in ((dq, 0), (dk, D * (value - 0.5)), (dv, 1))
        )
        told = f"gradients of attention of {D} features, tiles of {tile}"
        print(f"{told:60} {'close' if right else 'wrong'}", flush=True)
        wrong += [] if right else [told]
    return wrong


def attend_with_masks(device: mg.Device) -> list[str]:
    """Run attention and its gradients with masks of both types, in float32 and float16; returns what is
    wrong. The keys seen, every other one, are those whose values are 1."""
    xp, wrong, L = device.xp, [], 256
    value = np.arange(L)[:, None] % 2
    seen = np.broadcast_to(value[:, 0] == 1, (1, 2, L, L))
    modules: list[tuple[Any, Any]] = [(cuda.attention, np.float32)]
    if cuda.attention_tensor_core.is_supported(xp.empty(0)):
        modules.append((cuda.attention_tensor_core, np.float16))
    for module, dtype in modules:
        for features, added in itertools.product((32, 64, 128), (False, True)):
            q, k, v, g, out, dq, dk, dv = (xp.ones((1, 2, L, features), dtype) for _ in range(8))
            v *= xp.asarray(value, dtype)
            lse = xp.empty(q.shape[:3], np.float32)
            mask = xp.asarray(np.where(seen, np.float32(0), np.float32(-np.inf)) if added else seen)
            module.forward(out, lse, q, k, v, False, 1.0, mask=mask)
            module.backward((dq, dk, dv), g, (q, k, v), out, lse, False, 1.0, mask=mask)
            right = all(
                bool((abs(found - xp.asarray(expected, dtype)) < 1e-3 * features).all())
                for found, expected in ((out, 1), (dq, 0), (dk, 0), (dv, 2 * value))
            )
            told = f"attention of {features} features, {np.dtype(dtype)}, {'added' if added else 'bool'} mask"
            print(f"{told:60} {'close' if right else 'wrong'}", flush=True)
            wrong += [] if right else [told]
    return wrong


def attend_by_wgmma(device: mg.Device) -> list[str]:
    """Run attention and its gradients by wgmma on both sizes of tiles; returns what is wrong. All keys are
    the same, and values are 0 and 1 in turn, so that all results are exact."""
    xp, wrong, L = device.xp, [], 256
    for features in (40, 128):
        value = np.arange(L)[:, None] % 2
        q, k, v, g, out, dq, dk, dv = (xp.ones((1, 2, L, features), np.float16) for _ in range(8))
        v *= xp.asarray(value, np.float16)
        lse = xp.empty(q.shape[:3], np.float32)
        cuda.attention_wgmma.forward(out, lse, q, k, v, False, 1.0)
        cuda.attention_wgmma_grad.backward((dq, dk, dv), g, (q, k, v), out, lse, False, 1.0)
        right = all(
            bool((found == xp.asarray(expected, np.float16)).all())
            for found, expected in ((out, 0.5), (dq, 0), (dk, features * (value - 0.5)), (dv, 1))
        )
        told = f"attention wgmma, {features} features"
        print(f"{told:40} {'exact' if right else 'wrong'}", flush=True)
        wrong += [] if right else [told]
    return wrong


def recur_in_clusters(device: mg.Device) -> list[str]:
    """Run recurrent layers and their gradients by clusters of each size, with one row of the batch or several
    for each; returns what is wrong."""
    xp, rng, wrong, module = device.xp, np.random.default_rng(0), [], cuda.recurrent_cluster
    for cluster, N in itertools.product(module.CLUSTERS, BATCHES):
        state, z3, z4 = (3, N, 37), (3, N, 111), (3, N, 148)
        z, a, x, h, dh, c0 = (rng.standard_normal(shape) for shape in (z4, z3, state, state, state, (N, 37)))
        w4, w3, w1 = (rng.standard_normal((gates * 37, 37)) / 6 for gates in (4, 3, 1))
        gates, of_gru = rng.random(z4), rng.random((3, 4, N, 37))
        for op, launch, inputs, attributes in (
            ("lstm_grad", module.lstm_grad, (w4, c0, h, gates, dh, None), {}),
            ("gru", module.gru, (a, c0, w3, None), {}),
            ("gru_grad", module.gru_grad, (w3, c0, h, of_gru, dh), {}),
            ("rnn", module.rnn, (x, c0, w1), {"nonlinearity": "tanh"}),
            ("rnn", module.rnn, (x, c0, w1), {"nonlinearity": "relu"}),
            ("rnn_grad", module.rnn_grad, (dh, np.tanh(x), w1), {"nonlinearity": "tanh"}),
            ("rnn_grad", module.rnn_grad, (dh, np.tanh(x), w1), {"nonlinearity": "relu"}),
            ("lstm", module.lstm, (z, c0, c0, np.eye(148), w4, None), {}),
        ):
            expected = mg.get_op(op).reference(np, *inputs, reverse=True, **attributes)
            expected = expected if isinstance(expected, tuple) else (expected,)
            outs = tuple(xp.empty(e.shape, np.float32) for e in expected)
            placed = [None if x is None else xp.asarray(x.astype(np.float32)) for x in inputs]
            if op == "lstm":  # takes what the inputs contribute in the place of the gates
                outs[2][...] = placed.pop(0)
                placed.pop(2)
            launch(outs if len(outs) > 1 else outs[0], *placed, reverse=True, cluster=cluster, **attributes)
            error = worst_error([out if xp is np else out.get() for out in outs], list(expected))
            told = f"{op} of {N} rows, clusters of {cluster}"
            print(f"{told:40} error {error:.1e}", flush=True)
            wrong += [] if error < 1e-4 else [told]
    return wrong


def normalize_in_clusters(device: mg.Device) -> list[str]:
    """Run batch norm and its gradient by clusters of each size; returns what is wrong."""
    xp, rng, wrong, module = device.xp, np.random.default_rng(0), [], cuda.batch_norm_cluster
    shape, of_channels = (19, 3, 36), (3,)
    x, g = rng.standard_normal((2, *shape))
    weight, bias = rng.standard_normal((2, 3))
    mean, var = x.mean((0, 2)), x.var((0, 2))
    rstd = 1 / np.sqrt(var + 1e-5)
    normal = (x - mean[:, None]) * rstd[:, None]
    dweight, dbias = (g * normal).sum((0, 2)), g.sum((0, 2))
    of_all = (dbias[:, None] + normal * dweight[:, None]) / (19 * 36)
    forward = normal * weight[:, None] + bias[:, None], mean, rstd
    backward = (g - of_all) * (rstd * weight)[:, None], dweight, dbias
    for cluster in module.CLUSTERS:
        for name, launch, inputs, expected in (
            ("batch norm", module.batch_norm_cluster, (x, weight, bias, 1e-5), forward),
            ("its gradient", module.batch_norm_grad_cluster, (g, x, mean, rstd, weight), backward),
        ):
            outs = tuple(xp.empty(s, np.float32) for s in (shape, of_channels, of_channels))
            placed = [xp.asarray(i.astype(np.float32)) if isinstance(i, np.ndarray) else i for i in inputs]
            launch(outs, *placed, cluster=cluster)
            error = worst_error([out if xp is np else out.get() for out in outs], list(expected))
            told = f"{name}, clusters of {cluster}"
            print(f"{told:40} error {error:.1e}", flush=True)
            wrong += [] if error < 1e-4 else [told]
    return wrong


def empty(xp: Any, shape: tuple[int, ...], dtype: Any, last: bool) -> Any:
    """A new array of images, which lie channels ``last``, or in C order."""
    n, c, h, w = shape
    return nchw(xp.empty((n, h, w, c), dtype)) if last else xp.empty(shape, dtype)


def placed(xp: Any, array: np.ndarray, last: bool) -> Any:
    """``array`` on the device, in such a format."""
    out = empty(xp, array.shape, array.dtype, last)
    out[...] = xp.asarray(array)
    return out


def convolve_pointwise(device: mg.Device, C: int, O: int, last: bool) -> list[str]:  # noqa: E741
    """Run 1x1 convolution and its gradients in every format and tile; returns what is wrong."""
    xp, rng, wrong, options = device.xp, np.random.default_rng(0), [], (1, 1, 0, 0, 1, 1, 1)
    shapes = (2, C, 4, 4), (O, C), (2, O, 4, 4)
    x, w, g = (rng.integers(-1, 2, shape).astype(np.float32) for shape in shapes)
    weight = w[:, :, None, None]
    passes = {
        "forward": ((x, weight, None), np.maximum(np.einsum("oc,nchw->nohw", w, x), 0)),
        "input_grad": ((g, weight), np.einsum("oc,nohw->nchw", w, g)),
    }
    if not last:
        passes["weight_grad"] = (g, x), np.einsum("nohw,nchw->oc", g, x)[:, :, None, None]
    for (name, encode), tile in itertools.product(TENSOR_CORE_FORMATS.items(), (64, 128)):
        if (name, tile) == ("tf32", 128):  # there is none
            continue
        for which, (inputs, expected) in passes.items():
            bits = encode(expected)
            out = empty(xp, bits.shape, bits.dtype, last)
            arrays = [a if a is None else placed(xp, encode(a), last) for a in inputs]
            relu = {"relu": True} if which == "forward" else {}
            getattr(cuda.conv2d_pointwise, which)(out, *arrays, *options, tile=tile, **relu)
            told = f"conv2d pointwise {which} {name}, {C} to {O}, {tile} rows{', channels last' * last}"
            right = np.array_equal(out if xp is np else out.get(), bits)
            print(f"{told:40} {'exact' if right else 'wrong'}", flush=True)
            wrong += [] if right else [told]
    return wrong


def compute_in_halves(device: mg.Device) -> list[str]:
    """Run :func:`calls_in_halves`; returns the names of what is wrong."""
    wrong, rng, bounds = [], np.random.default_rng(0), {np.dtype(np.float16): 4e-3}
    if BFLOAT16:
        bounds[BFLOAT16] = 3e-2
    for name, (function, shapes) in calls_in_halves().items():
        for half, bound in bounds.items():
            inputs = [rng.standard_normal(shape).astype(half) for shape in shapes]
            expected = run(function, [a.astype(np.float64) for a in inputs], "cpu")
            found = [a.astype(np.float64) for a in run(function, inputs, str(device))]
            error = worst_error(found, expected)
            print(f"{name + ' ' + half.name:40} error {error:.1e}", flush=True)
            if not error < bound:
                wrong.append(f"{name} {half.name}")
    return wrong


def unscale_gradients(device: mg.Device) -> list[str]:
    """A step of a scaled loss; returns its name if it is wrong."""
    x = mg.ones(1061, device=device, requires_grad=True)
    optimizer, scaler = mg.optim.SGD([x], lr=1.0), mg.amp.GradScaler()
    scaler.scale((x * 0.5).sum()).backward()
    scaler.step(optimizer)
    right = bool((x.detach() == 0.5).all())
    print(f"{'scaled loss':40} {'exact' if right else 'wrong'}", flush=True)
    return [] if right else ["scaled loss"]


def step_many_parameters(device: mg.Device) -> list[str]:
    """Run ``optim_many.cu``, which the simulator's optimizers leave to ``optim.cu``, against that one."""
    xp, rng, wrong = device.xp, np.random.default_rng(0), []
    sgd, adam = (0.1, 0.0, 0.0, 0.01, False), (0.1, 0.9, 0.99, 1e-8, 0.01, True)
    momentum = (0.1, 0.9, 0.3, 0.01, False)
    halves = [np.dtype(np.float16), *([BFLOAT16] if BFLOAT16 else [])]
    for dtype in (np.dtype(np.float32), np.dtype(np.float64), *halves):
        drawn = [[np.abs(rng.standard_normal(n)).astype(dtype) for _ in range(4)] for n in (3, 2051)]
        for name, step, alone, states, flag, options in (
            ("sgd", cuda.optim_many.sgd_step, cuda.optim.sgd_step, 0, False, sgd),
            ("momentum", cuda.optim_many.sgd_step, cuda.optim.sgd_step, 1, False, momentum),
            ("adam", cuda.optim_many.adam_step, cuda.optim.adam_step, 2, 3, adam),
        ):
            arrays, others = ([[xp.array(a) for a in row] for row in drawn] for _ in range(2))
            columns = [list(column) for column in zip(*arrays, strict=True)][: 2 + states]
            for row in others:
                given = row[: 2 + states] if states else [*row[:2], None]
                alone(*given, *options, flag)
            step(*columns, *([] if states else [[None, None]]), [flag, flag], *options)
            found, expected = (
                [a if xp is np else a.get() for row in rows for a in row] for rows in (arrays, others)
            )
            error = worst_error(found, expected)
            told = f"{name} of many parameters {dtype.name}"
            print(f"{told:40} error {error:.1e}", flush=True)
            if not error < 10 * np.finfo(computed_dtype(dtype)).eps:
                wrong.append(told)
        if dtype not in halves:
            wrong += clip_many_gradients(device, [row[1] for row in drawn])
    return wrong


def clip_many_gradients(device: mg.Device, grads: list[np.ndarray]) -> list[str]:
    """``grads`` clipped to half of their norm."""
    xp, eps = device.xp, np.finfo(grads[0].dtype).eps
    norm = np.sqrt(sum(np.sum(grad.astype(np.float64) ** 2) for grad in grads))
    given = [xp.array(grad) for grad in grads]
    total = cuda.optim_many.clip(given, cuda.optim_many.squares(given), norm / 2)
    found = [a if xp is np else a.get() for a in (total, *given)]
    error = worst_error(found, [norm, *(grad * (norm / 2 / (norm + 1e-6)) for grad in grads)])
    told = f"the norm of many gradients {grads[0].dtype.name}"
    print(f"{told:40} error {error:.1e}", flush=True)
    return [] if error < 50 * eps else [told]


def look_for_wrong_indices(device: mg.Device) -> list[str]:
    """Run ``index_check.cu``, with and without a wrong index among 300."""
    xp, right, found = device.xp, cuda.index_check.RIGHT, []
    indices = np.arange(300)
    for size in (300, 299):
        wrong = xp.asarray(np.array([right]).view(np.uint64))
        cuda.index_check.look(wrong, xp.asarray(indices), size)
        found.append(int((wrong if xp is np else wrong.get()).view(np.int64)[0]))
    replaced = xp.empty(300, np.int64)
    cuda.index_check.replace(xp.zeros(1, np.uint64), replaced, xp.asarray(indices), 299, -100)
    found.append(int(replaced[299]))
    outside = xp.zeros(1, np.uint64)
    cuda.index_check.look_outside(outside, xp.linspace(0, 1.001, 300), 0.0, 1.0)
    found.append(int(outside[0]))
    print(f"{'wrong indices':40} {found}", flush=True)
    return [] if found == [right, 299, -100, 299] else ["wrong indices"]


def multiply_in_every_tiling(device: mg.Device) -> list[str]:
    """Run every instance of ``matmul_warp_tile.cu`` on integers; returns the names of what is wrong."""
    warp_tile, xp, rng, wrong = cuda.matmul_warp_tile, device.xp, np.random.default_rng(0), []
    a, b = (rng.integers(-1, 2, (69, 69)).astype(np.float32) for _ in range(2))
    for kernels, size in ((warp_tile.OF_VECTORS, 68), (warp_tile.OF_ELEMENTS, 69)):
        left, right = xp.asarray(a[:size, :size].copy()), xp.asarray(b[:size, :size].copy())
        for tiling, kernel in kernels.items():
            out = xp.empty((size, size), np.float32)
            warp_tile.warp_tile(out, left, right, tiling=tiling)
            exact = np.array_equal(out if xp is np else out.get(), a[:size, :size] @ b[:size, :size])
            print(f"{kernel.expression:40} {'exact' if exact else 'wrong'}", flush=True)
            if not exact:
                wrong.append(kernel.expression)
    return wrong


def check(name: str, function: Callable[..., Any], arrays: list[np.ndarray], device: mg.Device) -> list[str]:
    """Run one entry of :func:`calls` on every rung and in both dtypes; returns the names of what is wrong."""
    wrong = []
    kernels = [kernel for op in LADDERS.get(name, "").split() for kernel in mg.list_kernels(op, device.type)]
    rungs = list(dict.fromkeys(kernel.name for kernel in kernels)) or [""]
    for dtype, bound in ((np.float32, 1e-4), (np.float64, 1e-12)):
        # The reference sees the rounded inputs: max pooling may choose otherwise among the others.
        inputs = [a.astype(dtype) for a in arrays]
        with references("cpu"):
            expected = run(function, [a.astype(np.float64) for a in inputs], "cpu")
        for rung in rungs:
            with contextlib.ExitStack() as selected:
                for op in {kernel.op for kernel in kernels if kernel.name == rung}:
                    selected.enter_context(mg.use_kernel(op, rung, device.type))
                error = worst_error(run(function, inputs, str(device)), expected)
            told = " ".join(filter(None, (name, rung, np.dtype(dtype).name)))
            print(f"{told:40} error {error:.1e}", flush=True)
            if not error < bound:
                wrong.append(told)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda (the default), cuda:1, ... or sim")
    options = parser.parse_args()
    try:
        device = mg.device(options.device)
    except mg.errors.DeviceError as error:
        print(error, file=sys.stderr)
        return 2

    if device.type == "cuda":
        # Without CuPy's pool every array is an allocation of its own, so that a checker sees where it ends.
        device.xp.cuda.set_allocator(None)
    rng, launched, wrong = np.random.default_rng(0), set(), []
    watch(launched)
    for name, (function, shapes) in calls().items():
        wrong += check(name, function, [rng.standard_normal(shape) for shape in shapes], device)

    wrong += compute_in_halves(device) + unscale_gradients(device)
    wrong += step_many_parameters(device) + look_for_wrong_indices(device)
    wrong += multiply_in_every_tiling(device)
    modules = set(cuda.MODULES)
    for rung in ("tensor_core", "wgmma"):
        if getattr(cuda, f"matmul_{rung}").is_supported(device.xp.empty(0)):
            wrong += multiply_on_tensor_cores(rung, device)
        else:
            print(f"{device} does not have the tensor cores that matmul_{rung} is for")
            modules.remove(f"matmul_{rung}")
    if cuda.conv2d_tensor_core.is_supported(device.xp.empty(0)):
        wrong += convolve_on_tensor_cores(device)
        for C, O in POINTWISE_LAYERS:  # noqa: E741
            for last in (False, True) if C % 8 == 0 else (False,):
                wrong += convolve_pointwise(device, C, O, last)
    else:
        print(f"{device} does not have the tensor cores that conv2d_tensor_core is for")
        modules -= {"conv2d_tensor_core", "conv2d_tensor_core_weight_grad", "conv2d_merge_groups"}
        modules -= {"conv2d_parts", "conv2d_pointwise"}
    if cuda.conv2d_wgmma.is_supported(device.xp.empty(0)):
        wrong += convolve_by_wgmma(device)
    else:
        print(f"{device} does not have the tensor cores that conv2d_wgmma is for")
        modules.remove("conv2d_wgmma")
    wrong += attend_in_every_tile(device) + attend_with_masks(device)
    if cuda.attention_wgmma.is_supported(device.xp.empty(0)):
        wrong += attend_by_wgmma(device)
    else:
        print(f"{device} does not have the tensor cores that attention_wgmma is for")
        modules -= {"attention_wgmma", "attention_wgmma_grad"}
    if cuda.recurrent_cluster.is_supported(device.xp.empty(0)):
        wrong += recur_in_clusters(device) + normalize_in_clusters(device)
    else:
        print(f"{device} does not have the clusters that recurrent_cluster and batch_norm_cluster are for")
        modules -= {"recurrent_cluster", "batch_norm_cluster"}
    variables = [value for module in modules for value in vars(getattr(cuda, module)).values()]
    there = {kernel for value in variables for kernel in kernels_in(value)}
    missed = sorted(kernel.expression for kernel in there - launched)
    for what, names in (("wrong", wrong), ("never launched", missed)):
        if names:
            print(f"{what}: {', '.join(names)}", file=sys.stderr)
    print(f"{len(there) - len(missed)} of {len(there)} kernels launched on {device}")
    return 1 if wrong or missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""minigrad: a deep-learning framework small enough to read down to the silicon.

>>> import minigrad as mg
>>> x = mg.tensor([1.0, 2.0, 3.0], requires_grad=True)
>>> (x * x).sum().backward()
>>> x.grad
tensor([2., 4., 6.])
"""

import sys as _sys
from importlib import import_module as _import_module
from math import e, inf, nan, pi

import numpy as _np

try:
    from minigrad import kernels
except ImportError as error:
    raise ImportError(
        f"minigrad's kernels cannot be loaded ({error}). In a clone of the repository, install it first: "
        'python -m pip install -e "."; or, after "pip install .", start Python in another folder, because in '
        "the clone it finds the sources instead of what was installed"
    ) from error

from minigrad import autograd, autograd_functional, errors, random
from minigrad.argument_errors import explain_arguments as _explain_arguments
from minigrad.autograd import enable_grad, inference_mode, is_grad_enabled, no_grad, set_grad_enabled
from minigrad.captured import CapturedStep, capture, compile
from minigrad.creation import (
    arange,
    as_tensor,
    bernoulli,
    empty,
    empty_like,
    eye,
    from_numpy,
    full,
    full_like,
    linspace,
    logspace,
    multinomial,
    normal,
    ones,
    ones_like,
    rand,
    rand_like,
    randint,
    randint_like,
    randn,
    randn_like,
    randperm,
    tensor,
    tril_indices,
    triu_indices,
    zeros,
    zeros_like,
)
from minigrad.devices import Device, available_devices, device, get_default_device, set_default_device
from minigrad.dispatch import Spec, get_kernel, list_kernels, use_kernel
from minigrad.dtypes import bfloat16 as _bfloat16
from minigrad.dtypes import finfo as finfo
from minigrad.kernels.cpu.threads import get_num_threads, num_threads, set_num_threads
from minigrad.memory_format import MemoryFormat, channels_last, contiguous_format, preserve_format
from minigrad.mixed_precision import autocast, get_autocast_dtype, is_autocast_enabled
from minigrad.op import Op, get_op, op
from minigrad.ops import conv as _conv  # for their kernels
from minigrad.ops import conv_grads as _conv_grads
from minigrad.ops import norm_kernels as _norm_kernels
from minigrad.ops import pool as _pool
from minigrad.ops.activation import relu, sigmoid, tanh
from minigrad.ops.arithmetic import (
    acosh,
    addcdiv,
    addcmul,
    asinh,
    atan2,
    atanh,
    exp2,
    fmod,
    frac,
    hypot,
    lerp,
    logaddexp,
    logit,
    nan_to_num,
    xlogy,
)
from minigrad.ops.combining import (
    block_diag,
    cartesian_prod,
    column_stack,
    combinations,
    cross,
    dstack,
    kron,
    rot90,
    tensor_split,
)
from minigrad.ops.cumulative import cummax, cummin, cumprod, cumsum, diff
from minigrad.ops.diagonal import diag, diag_embed, diagonal, trace
from minigrad.ops.distance import cdist, cosine_similarity
from minigrad.ops.einsum import einsum, inner, tensordot
from minigrad.ops.elementwise import (
    abs,
    acos,
    allclose,
    asin,
    atan,
    bitwise_and,
    bitwise_left_shift,
    bitwise_not,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    ceil,
    clamp,
    clone,
    cos,
    cosh,
    div,
    eq,
    equal,
    erf,
    exp,
    expm1,
    floor,
    floor_divide,
    ge,
    gt,
    isclose,
    isfinite,
    isinf,
    isnan,
    le,
    log,
    log1p,
    log2,
    log10,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    lt,
    maximum,
    minimum,
    ne,
    neg,
    pow,
    reciprocal,
    remainder,
    rsqrt,
    sign,
    sin,
    sinh,
    sqrt,
    square,
    tan,
    tril,
    triu,
    trunc,
    where,
)
from minigrad.ops.elementwise import mul as mul
from minigrad.ops.index import gather, nonzero, take_along_dim
from minigrad.ops.join import (
    chunk,
    concat,
    hstack,
    meshgrid,
    narrow,
    repeat_interleave,
    roll,
    select,
    split,
    stack,
    unbind,
    vstack,
)
from minigrad.ops.matmul import addmm, baddbmm, bmm, dot, matmul, mm, mv, outer
from minigrad.ops.order import (
    argsort,
    bucketize,
    kthvalue,
    max,
    median,
    min,
    mode,
    quantile,
    searchsorted,
    sort,
    topk,
)
from minigrad.ops.reduce import (
    all,
    amax,
    amin,
    any,
    argmax,
    argmin,
    count_nonzero,
    mean,
    prod,
    sum,
)
from minigrad.ops.scatter import (
    index_add,
    index_copy,
    index_fill,
    index_select,
    masked_fill,
    masked_scatter,
    masked_select,
    scatter,
    scatter_add,
    scatter_reduce,
    take,
)
from minigrad.ops.shape import (
    broadcast_to,
    flatten,
    flip,
    movedim,
    permute,
    ravel,
    reshape,
    squeeze,
    tile,
    transpose,
    unflatten,
    unsqueeze,
)
from minigrad.ops.short_names import (
    add,
    atleast_1d,
    atleast_2d,
    atleast_3d,
    broadcast_tensors,
    clamp_max,
    clamp_min,
    deg2rad,
    detach,
    diagflat,
    dist,
    dsplit,
    fliplr,
    flipud,
    heaviside,
    hsplit,
    is_floating_point,
    isin,
    numel,
    rad2deg,
    round,
    std_mean,
    sub,
    svd,
    t,
    var_mean,
    vsplit,
)
from minigrad.ops.softmax import log_softmax, logsumexp, softmax
from minigrad.ops.special import digamma, erfinv, lgamma, polygamma
from minigrad.ops.squares import norm, std, var
from minigrad.ops.statistics import aminmax, corrcoef, cov, histc, nanmean, nansum, trapezoid
from minigrad.ops.unique import bincount, unique, unique_consecutive
from minigrad.precision import (
    convolution_precision,
    get_convolution_precision,
    get_float32_matmul_precision,
    set_convolution_precision,
    set_float32_matmul_precision,
)
from minigrad.printing import set_printoptions
from minigrad.promotion import get_default_dtype, set_default_dtype
from minigrad.random import (
    Generator,
    get_rng_state,
    initial_seed,
    manual_seed,
    seed,
    set_rng_state,
    use_deterministic_algorithms,
)
from minigrad.tensor import Tensor, is_tensor
from minigrad.typed import (
    BoolTensor,
    ByteTensor,
    CharTensor,
    DoubleTensor,
    FloatTensor,
    HalfTensor,
    IntTensor,
    LongTensor,
    ShortTensor,
    set_default_tensor_type,
)

_explain_arguments(
    globals(), but=("minigrad.ops.elementwise", "add", "matmul", "sigmoid", "sub", "sum", "tanh")
)

cat, concatenate, clip, ger, argwhere = concat, concat, clamp, outer, nonzero
swapaxes, moveaxis, multiply, subtract, divide = transpose, movedim, mul, sub, div
swapdims, newaxis = transpose, None
asarray = as_tensor
row_stack, trapz, spmm = vstack, trapezoid, mm  # of dense matrices
arcsin, arccos, arctan, arctan2 = asin, acos, atan, atan2
negative, absolute, true_divide = neg, abs, div
greater, greater_equal, less, less_equal, not_equal = gt, ge, lt, le, ne

float16 = half = _np.dtype(_np.float16)
float32 = float = _np.dtype(_np.float32)
float64 = double = _np.dtype(_np.float64)
int8, int16 = _np.dtype(_np.int8), _np.dtype(_np.int16)
int32 = int = _np.dtype(_np.int32)
int64 = long = _np.dtype(_np.int64)
uint8 = _np.dtype(_np.uint8)
bool = _np.dtype(_np.bool_)
short, dtype, Size = int16, _np.dtype, tuple
iinfo, broadcast_shapes = _np.iinfo, _np.broadcast_shapes

autograd.functional = autograd_functional  # type: ignore[attr-defined]
autograd.gradcheck = autograd_functional.gradcheck  # type: ignore[attr-defined]
autograd.gradgradcheck = autograd_functional.gradgradcheck  # type: ignore[attr-defined]
_sys.modules["minigrad.autograd.functional"] = autograd_functional
kernels.list = list_kernels  # from here, because the kernels' floor knows nothing of ops

__version__ = "0.1.0"

_LAZY = {
    "accelerator": "minigrad.accelerator",
    "amp": "minigrad.amp",
    "backends": "minigrad.backends",
    "compare": "minigrad.compare",
    "cuda": "minigrad.cuda",
    "data": "minigrad.data",
    "distributions": "minigrad.distributions",
    "func": "minigrad.func",
    "io": "minigrad.io",
    "linalg": "minigrad.linalg",
    "memory": "minigrad.memory",
    "models": "minigrad.models",
    "nn": "minigrad.nn",
    "optim": "minigrad.optim",
    "plot": "minigrad.plot",
    "testing": "minigrad.testing",
    "train": "minigrad.train",
    "utils": "minigrad.utils",
}
_REAL = "tensors hold real numbers; keep the real and the imaginary part in a tensor each"
_NOT_HERE = {
    **dict.fromkeys(("cfloat", "complex", "complex64", "complex128", "fft", "istft", "polar", "stft"), _REAL),
    **dict.fromkeys(("view_as_complex", "view_as_real"), _REAL),
    "distributed": "training runs in one process; there is no exchange between cards",
    "jit": "nothing is traced or scripted; call the module or the function itself",
    "sparse": "tensors are dense; for a product with few elements see index_add and scatter_add",
}
_IN_LINALG = {
    **{
        name: name
        for name in ("cholesky", "cholesky_solve", "det", "logdet", "matrix_power", "qr", "slogdet")
    },
    "inverse": "inv",
    "pinverse": "pinv",
}


def __getattr__(name: str):
    """Load the floors above the engine when they are first touched, so that importing minigrad is quick."""
    if name in _LAZY:
        return _import_module(_LAZY[name])
    if name == "Launch":
        return _import_module("minigrad.cuda_kernels").Launch
    if name == "draw_graph":
        return _import_module("minigrad.graph_drawing").draw_graph
    if name in ("save", "load"):
        return getattr(_import_module("minigrad.io"), name)
    if name == "vmap":
        return _import_module("minigrad.func").vmap
    if name in _IN_LINALG:
        return getattr(_import_module("minigrad.linalg"), _IN_LINALG[name])
    if name == "bfloat16":
        return _bfloat16()
    hint = f": {_NOT_HERE[name]}" if name in _NOT_HERE else ""
    raise AttributeError(f"module 'minigrad' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, "Launch", "draw_graph", "load", "save"])

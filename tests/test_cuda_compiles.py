"""Every CUDA source compiles for the cards from Turing to Hopper, or for those that MINIGRAD_ARCHITECTURES
names. No card and no driver is needed for that.

NVRTC, NVIDIA's run-time compiler, comes with `pip install nvidia-cuda-nvrtc` (or with a CUDA toolkit), and
the headers of the 16-bit floats with `pip install nvidia-cuda-runtime`. It is called here through ctypes, as
CuPy need not be installed either.
"""

import ctypes
import ctypes.util
import importlib.util
import itertools
import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from minigrad.kernels import cuda
from minigrad.kernels.cuda.backend import OPTIONS
from minigrad.kernels.cuda.elementwise import Elementwise
from minigrad.kernels.launch import CudaKernel
from minigrad.kernels.source import BFLOAT16, CUDA_DIRECTORY, CudaSource, computed_dtype

TUNED = ["sm_75", "sm_80", "sm_90a"]
# Names of others, separated by spaces, may take their place.
ARCHITECTURES = os.environ.get("MINIGRAD_ARCHITECTURES", " ".join(TUNED)).split()

# The most bytes that an instance may store to local memory and load from there, on cards other than these.
# These few do: sum_found of bfloat16 on sm_100, 28 bytes; on sm_120, up to 16, conv2d_forward_tensor_core
# with tiles of 64 rows, conv2d_forward_pipelined<128, 128, 2>, the smallest matmul_warp_tile that makes
# single loads, and group_norm_grad_registers of float64.
MOST_SPILLED = 32

# The types that each template parameter stands for, and those of kernels that take others.
TYPES = {"S": [np.float32], "Tap": [np.uint8, np.int32], "Mask": [np.float32]}
TYPES_OF_KERNEL = {
    "matmul_tensor_core": {"T": [np.float32, np.float16]},
    "matmul_wgmma": {"T": [np.float16]},
    **{f"attention_wgmma{kernel}": {"T": [np.float16]} for kernel in ("", "_grad_keys", "_grad_queries")},
    **{
        f"attention_tensor_core{kernel}": {"T": [np.float16]}
        for kernel in ("", "_grad_keys", "_grad_queries")
    },
    "resample": {"T": [np.uint8, np.float32, np.float64], "C": [np.float32, np.float64]},
    "cast": {name: [np.float32, np.float16, BFLOAT16] for name in ("To", "From")},
}


# The types that take the place of these where a kernel has no version of float64.
FLOATS = (np.float32, np.float64)
FLOATS_OF_KERNEL = {"matmul_skinny": (np.float32,)}


@cache
def nvrtc():
    """The NVRTC library, from the wheel or the system; None if there is none."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else []
    paths = [str(path) for folder in folders for path in sorted(Path(folder).glob("**/libnvrtc.so.*"))]
    for path in [*paths, ctypes.util.find_library("nvrtc")]:
        if path and "alt" not in Path(path).name:
            try:
                return ctypes.CDLL(path)
            except OSError:
                continue
    return None


@cache
def toolkit_headers():
    """The folder of cuda_fp16.h: of a wheel, or of the toolkit in $CUDA_PATH; None if there is none."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations) if spec else []
    found = [path for folder in folders for path in sorted(Path(folder).glob("**/cuda_fp16.h"))]
    found.append(Path(os.environ.get("CUDA_PATH", "/usr/local/cuda"), "include", "cuda_fp16.h"))
    return next((path.parent for path in found if path.is_file()), None)


needs_nvrtc = pytest.mark.skipif(
    nvrtc() is None,
    reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc compiles for cards without one",
)


def compile_with_nvrtc(text, names, architecture):
    """Compile for ``architecture``. Returns (whether that worked, the log, the names of ``names`` in it)."""
    headers = toolkit_headers()
    if "#include <cuda_" in text and headers is None:
        pytest.skip("the headers of the 16-bit floats are not installed: pip install nvidia-cuda-runtime")
    library, program = nvrtc(), ctypes.c_void_p()
    assert library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None) == 0
    try:
        for name in names:
            assert library.nvrtcAddNameExpression(program, name.encode()) == 0
        # As CuPy does; to NVRTC 13.0 generic lambdas are functions of the host without the second one.
        options = [*OPTIONS, "-ftz=true", "--device-as-default-execution-space"]
        options += [f"-arch={architecture}", "--ptxas-options=-v"]
        options += [f"-I{headers}"] if headers else []
        c_options = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        worked = library.nvrtcCompileProgram(program, len(options), c_options) == 0
        log_size, code_size, name_in_log = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_char_p()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(log_size))
        log = ctypes.create_string_buffer(log_size.value)
        library.nvrtcGetProgramLog(program, log)
        library.nvrtcGetCUBINSize(program, ctypes.byref(code_size))
        assert code_size.value > 0 or not worked
        names_in_log = {}
        for name in names if worked else ():
            pointer = ctypes.byref(name_in_log)
            assert library.nvrtcGetLoweredName(program, name.encode(), pointer) == 0
            names_in_log[name] = name_in_log.value.decode()
        return worked, log.value.decode(), names_in_log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def kernels_of(module):
    """The kernels that a module launches."""
    values = list(vars(module).values())
    for table in [value for value in values if isinstance(value, dict)]:
        values += table.values()
    for function in [value for value in values if isinstance(value, Elementwise)]:
        values += function.kernels
    return [value for value in values if isinstance(value, CudaKernel)]


def source_of(module):
    """The module's source; for the generated ones, all in one."""
    if module is cuda.elementwise:
        functions = [*module.FUNCTIONS.values(), *module.ACTIVATIONS.values()]
        return CudaSource("".join(function.code for function in functions))
    return kernels_of(module)[0].source


def instances(kernel, floats=None):
    """Every C++ name that ``kernel`` is launched under: ``["scale<float>", "scale<double>"]``."""
    floats = floats or FLOATS_OF_KERNEL.get(kernel.name, FLOATS)
    parameters = [name for name, kind in kernel.signature.template.items() if kind == "typename"]
    computed = [computed_dtype(np.dtype(dtype)) for dtype in floats]
    types = {**TYPES, "T": floats, "C": computed} | TYPES_OF_KERNEL.get(kernel.name, {})
    if "Out" in parameters:
        types["T"] = types["Out"] = list(dict.fromkeys([*floats, *computed]))
    choices = itertools.product(*(types[name] for name in parameters))
    chosen = [dict(zip(parameters, map(np.dtype, choice), strict=True)) for choice in choices]
    fitting = [choice for choice in chosen if go_together(floats, **choice)]
    return list(dict.fromkeys(map(kernel.instance, fitting)))


def go_together(floats, T=None, C=None, Out=None, **_):
    """Whether C is what T is computed with; and of Out and T, which are not both new, one is of the other."""
    if C is not None:
        return C is computed_dtype(T)
    if Out is not None:
        return (Out in floats or T in floats) and (
            Out is T or Out is computed_dtype(T) or T is computed_dtype(Out)
        )
    return True


def test_every_kernel_of_every_source_is_launched_by_its_module():
    generated = ["elementwise"]
    written = sorted(path.stem for path in CUDA_DIRECTORY.glob("*.cu"))
    assert sorted(written + generated) == sorted(cuda.MODULES)
    for name in cuda.MODULES:
        module = getattr(cuda, name)
        launched = {kernel.name for kernel in kernels_of(module)}
        assert source_of(module).code.count("__global__") == len(launched), name


def resources_of_instances(log):
    """By the names that instances have in the log: registers of a thread, bytes of static shared memory, of
    spills."""
    found = {}
    for text in log.split("Compiling entry function '")[1:]:
        patterns = r"Used (\d+) registers", r"(\d+) bytes smem", r"(\d+) bytes spill"
        numbers = (sum(map(int, re.findall(pattern, text))) for pattern in patterns)
        found[text.partition("'")[0]] = tuple(numbers)
    return found


def resources(log):
    """The same by the names of kernels: the largest numbers among a template's instances."""
    found = {}
    for instance, numbers in resources_of_instances(log).items():
        length = re.match(r"_Z(\d+)", instance)
        name = instance[length.end() :][: int(length[1])]
        found[name] = tuple(map(max, zip(numbers, found.get(name, (0, 0, 0)), strict=True)))
    return found


def assert_little_is_spilled(log, architecture):
    most = 0 if architecture in TUNED else MOST_SPILLED
    assert all(spills <= most for _, _, spills in resources(log).values()), log


# Launched only where the host finds cp.async and mma of float32 and bfloat16 (is_supported() of
# matmul_tensor_core), which compute capability 8.0 brought; to compile them takes longest of all.
FROM_SM_80 = {
    *("attention_tensor_core", "conv2d_pointwise", "conv2d_tensor_core"),
    *("conv2d_tensor_core_weight_grad", "matmul_tensor_core"),
}


def skip_other_architectures(module, architecture):
    source = source_of(module)
    if module.__name__.rpartition(".")[2] in FROM_SM_80 and architecture == "sm_75":
        pytest.skip(f"{source.name}: no card of sm_75 launches it")
    if source.architecture not in (None, architecture):
        only = source.architecture
        pytest.skip(f"{source.name} uses instructions that {only} alone has; nothing else launches it")


# Of kernels that memory bounds, the threads of a block, and how many blocks a multiprocessor runs at a time,
# as the sizes of their grids, or comments on what is on its way from memory, reckon with. By the module, and
# what the kernels' expressions have in common.
AT_A_TIME = {
    ("batch_norm", r"batch_norm_normalize<"): (256, 4),
    ("batch_norm", r"batch_norm_(normalize|moments)_columns<"): (256, 3),
    ("batch_norm", r"batch_norm_grad<"): (256, 6),
    ("batch_norm", r"batch_norm_grad_columns<"): (256, 3),
    ("batch_norm", r"batch_norm_(moments|inference)<"): (256, 8),
    ("channel_sums", r"planes"): (256, 6),
    ("channel_sums", r"columns"): (256, 2),
    ("gemv", r"rows"): (256, 4),
    ("gemv", r"columns"): (1024, 1),
    ("pool2d_rolling", r"avg.*1, true>"): (128, 7),
    ("pool2d_vectorized", r"."): (256, 5),
    ("reduce", r"reduce_(vectorized|split|columns)<.*SUM"): (256, 4),
    ("softmax", r"softmax_registers"): (256, 4),
    ("transpose", r"."): (256, 4),
}
REGISTERS = 65536  # of a multiprocessor, in steps of 8 for a thread


def assert_as_many_blocks_run_at_a_time_as_grids_reckon_with(name, floats, log, names_in_log):
    """Of the instances of ``floats`` of the module ``name``, compiled for sm_90a."""
    needs = resources_of_instances(log)
    for (module, pattern), (threads, blocks) in AT_A_TIME.items():
        if module != name:
            continue
        kernels = [k for k in kernels_of(getattr(cuda, name)) if re.search(pattern, k.expression)]
        found = [instance for kernel in kernels for instance in instances(kernel, floats)]
        assert found
        for instance in found:
            registers, shared, _ = needs[names_in_log[instance]]
            of_thread = -(-registers // 8) * 8
            assert of_thread * threads * blocks <= REGISTERS, f"{instance}: {registers} registers"
            assert shared * blocks <= 227 * 1024, f"{instance}: {shared} bytes"


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", cuda.MODULES)
def test_source_compiles(name, architecture, summary):
    module = getattr(cuda, name)
    skip_other_architectures(module, architecture)
    names = [instance for kernel in kernels_of(module) for instance in instances(kernel)]
    source = source_of(module)
    if any("__half" in name for name in names):
        source = source.with_halves
    worked, log, names_in_log = compile_with_nvrtc(source.text, names, architecture)
    assert worked, log
    assert "warning" not in log, log
    needs = resources(log)
    assert needs.keys() == {kernel.name for kernel in kernels_of(module)}
    assert all(registers > 0 for registers, _, _ in needs.values()), log
    assert_little_is_spilled(log, architecture)
    if architecture == "sm_90a":
        assert_as_many_blocks_run_at_a_time_as_grids_reckon_with(name, [np.float32], log, names_in_log)
    if module is cuda.elementwise:
        needs = {
            f"elementwise {layout}, at most": max(n for k, n in needs.items() if k.endswith(layout))
            for layout in ("flat", "strided")
        }
    for kernel, (registers, shared, _) in needs.items():
        summary(
            "registers of a thread, and static shared memory of a block",
            f"{architecture:7} {kernel:34} {registers:3} registers {shared:6} bytes",
        )


# The kernels that take floats of 16 bits, too, by the modules that launch them.
HALVES = {
    "attention": "row_sums",
    "batch_norm": "<C, T",
    "batch_norm_cluster": "",
    "batch_norm_registers": "",
    "channel_sums": "<C, T",
    "conv2d_depthwise": ".",
    "conv2d_strips": "T, 3|forward|true|grad<(Out, )?T, 5, (1, [35]|2, [13])[,>]",
    "cross_entropy": "vectorized|registers",
    "cumsum": ".",
    "embedding": "gather|chunks|segments|repeated|found",
    "gemv": ".",
    "matmul_skinny": ".",
    "norm": "<C, T",
    "norm_registers": "<C, T",
    "optim": ".",
    "optim_many": "steps",
    "pool2d": "2d(_input_grad)?(_scatter)?<",
    "pool2d_channels_last": ".",
    "pool2d_rolling": "",
    "pool2d_rows": "",
    "pool2d_vectorized": "",
    "random": "dropout_block",
    "recurrent": ".",
    "recurrent_cluster": "T, (8|16), 4",
    "recurrent_sequence": ".",
    "reduce": "(vectorized|split|columns)<.*SUM",
    "row_statistics": ".",
    "softmax": "vectorized|registers",
    "transpose": ".",
}


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", HALVES)
def test_kernels_of_16_bits_compile(name, architecture):
    module = getattr(cuda, name)
    skip_other_architectures(module, architecture)
    kernels = [kernel for kernel in kernels_of(module) if re.search(HALVES[name], kernel.expression)]
    names = [instance for kernel in kernels for instance in instances(kernel, (np.float16, BFLOAT16))]
    counted = architecture == "sm_90a" and any(module == name for module, _ in AT_A_TIME)
    names = [name for name in names if counted or "int" not in name]  # large windows are rare
    worked, log, names_in_log = compile_with_nvrtc(source_of(module).with_halves.text, names, architecture)
    assert worked, log
    assert "warning" not in log, log
    needs = resources(log)
    assert needs.keys() == {kernel.name for kernel in kernels}
    assert_little_is_spilled(log, architecture)
    if architecture == "sm_90a" and name != "transpose":  # which moves bits
        assert_as_many_blocks_run_at_a_time_as_grids_reckon_with(name, [np.float16], log, names_in_log)


@needs_nvrtc
@pytest.mark.parametrize("name", ["attention_tensor_core", "attention_wgmma", "attention_wgmma_grad"])
def test_attention_compiles_for_bfloat16(name, monkeypatch):
    """On one architecture: the code is that of float16 but for the products' instruction."""
    module = getattr(cuda, name)
    source = source_of(module)
    for kernel in kernels_of(module):
        monkeypatch.setitem(TYPES_OF_KERNEL, kernel.name, {"T": [BFLOAT16]})
    names = [instance for kernel in kernels_of(module) for instance in instances(kernel)]
    assert all("__nv_bfloat16" in name for name in names)
    architecture = source.architecture or "sm_80"
    worked, log, _ = compile_with_nvrtc(source.with_halves.text, names, architecture)
    assert worked, log
    assert "warning" not in log, log
    assert resources(log).keys() == {kernel.name for kernel in kernels_of(module)}
    assert_little_is_spilled(log, architecture)


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", ["add", "where", "lt", "gelu_tanh_grad", "pow"])
def test_elementwise_functions_of_16_bits_compile(name, architecture):
    function = (cuda.elementwise.FUNCTIONS | cuda.elementwise.ACTIVATIONS)[name]
    names = [instance for kernel in function.half_kernels for instance in instances(kernel)]
    assert len(set(names)) == 4
    worked, log, _ = compile_with_nvrtc(function.half_kernels[0].source.with_halves.text, names, architecture)
    assert worked, log
    assert "warning" not in log, log
    assert_little_is_spilled(log, architecture)


@needs_nvrtc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_device_function_compiles(architecture):
    loads = [
        f"{name}(r{n}, &tile[threadIdx.x]); sum += r{n}[0];"
        for name in ("ldmatrix", "ldmatrix_trans")
        for n in (1, 2, 4)
    ]
    copies = [f"copies.copy<{n}>(&tile[{n}], &in[{n}], valid); copies.commit();" for n in (4, 8, 16)]
    code = f"""
    #include "async_copy.cuh"
    #include "tensor_core.cuh"
    __global__ void k(float* out, const uint4* in, int valid) {{
        __shared__ uint4 tile[32];
        AsyncCopies copies;
        {" ".join(copies)}
        copies.wait<0>();
        __syncthreads();
        unsigned r1[1], r2[2], r4[4], sum = 0;
        {" ".join(loads)}
        float c[4] = {{}};
        to_tf32(r4[0], r4[2]);
        mma_tf32(c, r4, r2);
        mma_f16(c, r4, r2);
        mma_bf16(c, r4, r2);
        out[threadIdx.x] = c[0] + sum;
    }}"""
    worked, log, _ = compile_with_nvrtc(CudaSource(code).text, ["k"], architecture)
    assert worked, log
    assert "warning" not in log, log


@needs_nvrtc
def test_compile_errors_name_the_lines_of_the_source():
    source = CudaSource("__global__ void k(int* out) {\n    out[0] = missing;\n}\n")
    worked, log, _ = compile_with_nvrtc(source.text, ["k"], "sm_80")
    assert not worked
    assert 'kernel.cu(2): error: identifier "missing" is undefined' in log

#!/usr/bin/env bash
# One command for a machine with an NVIDIA card: build, test, check memory, measure. No network is needed.
#
#     benchmarks/gpu.sh [--resume] [OUT]
#
# leaves gpu.json, gpu.md, gpu.log, and the rows in benchmark.json, in the folder OUT (or $OUT, or
# benchmarks/results/gpu-<date>). It ends within ten minutes, however many tests there are: every stage has a limit,
# and one that fails or runs over is recorded, with the number of tests that it got through, while the others go on.
# The benchmark has what is left. With --resume it goes on with the rows that OUT does not have yet, and only what
# it needs is run beside it: two runs of ten minutes measure all rows.
#
# MINIGRAD_GPU_SECONDS is another limit for everything, MINIGRAD_GPU_STAGES the stages to run ("build benchmark",
# say) where not all are wanted; without "benchmark" among them, OUT keeps its rows. Two have to be asked for:
# "variants", which is gpu_variants.py, and "training", which trains two examples on the card, MNIST to 99 % and
# CIFAR-10 to 94 %, with the data sets of $MINIGRAD_DATA. Rows that a record of MINIGRAD_GPU_AFTER, the path of a
# gpu.json, has times for come last.
#
# It needs Python 3.11 with NumPy, CuPy, Cython, setuptools, pytest and hypothesis, and gcc. PyTorch,
# compute-sanitizer, pytest-xdist and pytest-timeout are used where they are. PYTHON names another interpreter
# than python3, MINIGRAD_COMMIT the commit, for a checkout without git. What is built stays in build/gpu; the
# Python environment is not changed.
#
# Exit status: 0 all is well, 1 some stage failed (the last lines say which), 2 there is no card to run on, 64 the
# arguments are not those above.
set -uo pipefail

LIMIT=${MINIGRAD_GPU_SECONDS:-570} # for everything, with a margin to ten minutes
all_stages="build kernel-tests op-tests memcheck racecheck compile benchmark compile-tests"
rows=() # the options of gpu_vs_torch.py that say which rows
if [[ ${1:-} == --resume ]]; then
    shift
    all_stages="build compile benchmark"
    rows=(--resume)
fi
if (($# > 1)) || [[ ${1:-} == -* ]]; then
    echo "gpu.sh: usage: benchmarks/gpu.sh [--resume] [OUT], in this order; got beside it: ${*: -1}" >&2
    exit 64
fi
STAGES=${MINIGRAD_GPU_STAGES:-$all_stages}
[[ -z ${MINIGRAD_GPU_AFTER:-} ]] || rows+=(--after "$MINIGRAD_GPU_AFTER")
python=${PYTHON:-python3}
root=$(cd "$(dirname "$0")/.." && pwd) || exit 1
out=${1:-${OUT:-$root/benchmarks/results/gpu-$(date +%F)}}
site=$root/build/gpu

find_card='
import sys
try:
    import cupy
    assert cupy.cuda.runtime.getDeviceCount() > 0, "there is none"
except Exception as error:
    sys.exit((str(error).strip() or type(error).__name__).splitlines()[0])
'
if ! reason=$("$python" -c "$find_card" 2>&1); then
    echo "gpu.sh: no NVIDIA card can be used here, so nothing was run: ${reason##*$'\n'}" >&2
    exit 2
fi

mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
log=$out/gpu.log
if [[ ${rows[0]:-} != --resume && " $STAGES " == *" benchmark "* ]]; then
    rm -f "$out/benchmark.json" "$out/gpu.json"
fi
rows+=(--json "$out/benchmark.json")
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
: >"$log"
: >"$work/stages"
SECONDS=0
failed=0

# stage NAME SECONDS COMMAND...: run it under its limit, or what is left of the whole; record how it went.
stage() {
    local name=$1 limit=$2 began=$SECONDS left=$((LIMIT - SECONDS)) status
    shift 2
    [[ " $STAGES " == *" $name "* ]] || { skip "$name" "not asked for"; return; }
    ((limit < left)) || limit=$left
    echo "== $name" | tee -a "$log"
    if ((limit > 0)); then
        # INT, for pytest then tells what it found so far.
        timeout --signal=INT --kill-after=5 "$limit" "$@" 2>&1 | tee -a "$log" "$work/$name.out" | tail -n 60
        status=${PIPESTATUS[0]}
    else
        echo "no time was left" | tee -a "$log"
        status=124
    fi
    ((status == 0)) || failed=1
    printf '%s\t%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - began))" "$limit" >>"$work/stages"
    echo "== $name: exit status $status after $((SECONDS - began)) s" | tee -a "$log"
}

skip() {
    echo "== $1: skipped, $2" | tee -a "$log"
    printf '%s\tskipped: %s\t0\t0\n' "$1" "$2" >>"$work/stages"
}

# The package as users get it, in a folder of its own: by pip, or where pip cannot, by setuptools alone.
prepare() {
    cd "$root" || return 1
    rm -rf "$site"
    "$python" -m pip install --quiet --no-index --no-build-isolation --no-deps --target "$site" . ||
        "$python" setup.py --quiet build --build-lib "$site" || return 1
    cd / && PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} "$python" -c 'import minigrad as mg; print(mg.__file__, mg.available_devices())'
}

# run_tests EXPRESSION FILE...: the tests whose names fit, on several processes where pytest-xdist is. Each is
# told as it ends (-v), for the stage may be cut short. A process whose CUDA context is lost, or whose kernel does
# not end, is replaced (tests/conftest.py, pytest-timeout); without xdist all its tests fail then: 50 are enough to
# see it. Deprecations in the libraries of this machine are no failures.
run_tests() {
    cd "$root" || return 1
    local options=(--maxfail=50)
    if "$python" -c 'import xdist' 2>/dev/null; then
        options=(--maxfail=200 -n 14)
        "$python" -c 'import pytest_timeout' 2>/dev/null && options+=(--timeout=100 --timeout-method=thread)
    fi
    PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 "$python" -m pytest -v --tb=short -p no:cacheprovider -p no:benchmark \
        -W default::DeprecationWarning -W default::FutureWarning "${options[@]}" -k "$1" "${@:2}"
}

# benchmark SECONDS OPTION...: a row that takes the process with it ends with 3, or as a signal does; a new one goes on.
benchmark() {
    local began=$SECONDS limit=$1 status resume=()
    shift
    while :; do
        "$python" "$root/benchmarks/gpu_vs_torch.py" --seconds $((limit - SECONDS + began)) "$@" "${resume[@]}"
        status=$?
        ((status > 2 && limit > SECONDS - began)) || return "$status"
        resume=(--resume)
    done
}

# Errors that CuPy's own calls meet and handle are not reported: this is about what the kernels do.
sanitize() {
    local options=(--tool "$1" --error-exitcode 1)
    [[ $1 != memcheck ]] || options+=(--report-api-errors no)
    compute-sanitizer "${options[@]}" "$python" "$root/benchmarks/gpu_every_kernel.py"
}

# gpu_record.py reads from the lines of their epochs how long they took.
train() {
    cd "$root" || return 1
    "$python" examples/mnist_cnn.py --device cuda --epochs 4 --output "$1/mnist_cnn" &&
        "$python" examples/cifar10.py --device cuda --model resnet9 --epochs 24 --batch-size 512 --lr 0.4 --amp \
            --output "$1/cifar10"
}

# `timeout` starts programs, not functions: these run in a shell of their own.
export -f prepare run_tests sanitize benchmark train
export python root site
stage build 120 bash -c prepare
export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}

# Tests whose parameters say cuda: those of the kernels, then those of the ops that use them. Files in which no
# test has a device are left out, for each process reads them all; so is what needs no card, until the end.
on_card='[cuda or -cuda'
mapfile -t kernel_tests < <(
    cd "$root" && { ls tests/kernels/test_cuda_*.py; grep -lwE 'backend|cuda' tests/kernels/test_*.py; } | sort -u
)
mapfile -t op_tests < <(
    cd "$root" && grep -lwE 'device|cuda' tests/test_*.py |
        grep -vE 'test_(every_op|cuda_compiles|gpu_benchmark|nn_against_torch|packaging)\.py'
)
stage kernel-tests 100 bash -c 'run_tests "$@"' - "$on_card" "${kernel_tests[@]}"
stage op-tests 120 bash -c 'run_tests "$@"' - "$on_card" tests/test_every_op.py "${op_tests[@]}"
for tool in memcheck racecheck; do
    if command -v compute-sanitizer >/dev/null; then
        stage "$tool" 40 bash -c "sanitize $tool"
    else
        skip "$tool" "compute-sanitizer is not installed"
    fi
done
stage compile 60 "$python" "$root/benchmarks/gpu_vs_torch.py" --compile --seconds 45 "${rows[@]}"
measure=$((LIMIT - SECONDS - 20))
[[ " $STAGES " != *" variants "* ]] || ((measure -= 400))
[[ " $STAGES " != *" training "* ]] || ((measure -= 300))
((measure > 60)) || measure=60
stage benchmark $((measure + 10)) bash -c 'benchmark "$@"' - "$measure" "${rows[@]}"
if [[ " $STAGES " == *" variants "* ]]; then
    stage variants 400 "$python" "$root/benchmarks/gpu_variants.py" --json "$out/variants.json"
fi
if [[ " $STAGES " == *" training "* ]]; then
    stage training 300 bash -c 'train "$@"' - "$out"
fi
if ((LIMIT - SECONDS > 40)); then
    stage compile-tests 60 bash -c 'run_tests "$@"' - test_cuda_compiles tests/test_cuda_compiles.py
else
    skip compile-tests "no time was left; they need no card"
fi

"$python" "$root/benchmarks/gpu_record.py" "$work" "$out" || failed=1
"$python" "$root/benchmarks/gpu_table.py" "$out/gpu.json" >"$out/gpu.md" || failed=1
echo "== $out/gpu.json, $out/gpu.md, $out/gpu.log"
while IFS=$'\t' read -r name status _; do
    case $status in
        0) status=passed ;;
        skipped*) ;;
        124 | 137) status="FAILED: its time was over" ;;
        *) status="FAILED: exit status $status" ;;
    esac
    printf '%-15s%s\n' "$name" "$status"
done <"$work/stages" | tee -a "$log"
exit "$failed"

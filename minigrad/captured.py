"""A training step recorded once as a CUDA graph, and replayed: :func:`capture`.

To hand one kernel to a card takes some microseconds of Python, longer than many kernels run. A graph holds
all kernels of a step, with their arguments; the card is handed the whole of it in one launch.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from minigrad.devices import Device, cpu
from minigrad.devices import device as find_device
from minigrad.dispatch import empty_channels_last, selected_kernels
from minigrad.errors import CaptureError, DeviceError
from minigrad.graph import mark_cells_written, mode, wrap
from minigrad.kernels import launch
from minigrad.kernels.channels_last import in_memory_order, is_channels_last
from minigrad.kernels.cuda.live import LiveNumbers
from minigrad.leaf_gradients import LeafGradients
from minigrad.precision import get_convolution_precision, get_float32_matmul_precision
from minigrad.recording import MAX_LIVE_NUMBERS, Recording, recorder
from minigrad.tensor import Tensor

__all__ = ["CapturedStep", "capture", "compile"]

SHORT_LIFE, OFTEN = 8, 3
"""After so many graphs in a row that served for fewer replays, :class:`CapturedStep` warns."""

MAX_GRAPHS = 32
"""Of one step: of more shapes, those that were not used for longest are recorded again when they come."""

STREAM_CAPTURE_ERRORS = range(900, 910)  # of cudaError_t


def compile(model: Any = None, **options: Any) -> Any:
    """``model``, a module or a function, as it is, or as a decorator: there is nothing to compile.

    ``torch.compile`` traces Python code; what makes a step on a card quicker here is :func:`capture`.
    """
    return (lambda function: function) if model is None else model


def capture(
    function: Callable[..., Any] | None = None,
    *,
    device: str | Device | None = None,
    warmup: int = 2,
) -> Any:
    """Record ``function``, a step of training or of inference, as a CUDA graph, and replay it from then on.

    As a decorator, or called with the function::

        @mg.capture
        def step(images, labels):
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            return loss

        for images, labels in loader:
            loss = step(images, labels)

    The first ``warmup`` calls run as they would without; they compile kernels and find out what the memory
    needs. The next one is recorded and replayed, and so are all after it: its Python code does not run again.
    Inputs are copied into buffers of the graph, from the host as well. Tensors among the arguments may stand
    in lists, tuples and dicts. For each combination of their shapes, dtypes and memory formats, and of the
    other arguments' values, and for each of ``no_grad``, ``autocast``, ``use_kernel`` and the precisions
    around the call, there is a graph of its own, with memory of its own.

    What differs between two steps, each replay gets anew: learning rates, the momentum of SGD and the first
    beta of Adam and AdamW, as a schedule sets them between the calls, the count of Adam's steps, the scale of
    a ``GradScaler``, and random numbers. The results are the plain step's, bit for bit. A tensor whose array
    is replaced, a parameter that is frozen, and an optimizer that is loaded or of which another option
    changes, have the step recorded again; a warning names what changes again and again. All else is as it was
    when the step was recorded: ``model.train()`` and ``eval()``, attributes, Python's own variables.

    Of schedules and of a ``GradScaler``, ``step()`` and ``update()`` belong after the call; ``scale(loss)``
    belongs into the step.

    On ``cpu`` and ``sim`` the function runs plainly at each call, and what a card would refuse is refused.

    Args:
        function: takes tensors and returns tensors, in lists, tuples and dicts, and anything else.
        device: where the step computes, and where its inputs are copied to; by default the device of the
            first tensor among its arguments.
        warmup: how many calls of each kind run plainly first; at least 1.

    Returns:
        A :class:`CapturedStep`, to be called as ``function`` is, from one thread. The tensors that it returns
        stand in the graph's memory: **the next call overwrites them**. ``clone()`` what must stay, and
        ``loss.item()`` waits for the step. Gradients that the step leaves in ``grad`` are overwritten, too;
        it should begin with ``zero_grad()``. If it adds to those of earlier calls instead, there is a graph
        for gradients that are there and one for none, and after ``zero_grad()`` outside they start anew.

    Raises:
        CaptureError: the step looks at values (``item()``, ``numpy()``, ``bool()``, ``print``, ``x[mask]``
            and all else whose shape depends on them), copies from the CPU, draws numbers there (``randint``,
            ``randperm``, ``multinomial``), waits for the card, or steps a schedule or a ``GradScaler``; or an
            op that it uses cannot be recorded. The message names it. Counts of steps, gradients and random
            numbers are then as before.
        TypeError: an argument is neither a tensor nor hashable.
    """
    if function is None:
        return functools.partial(capture, device=device, warmup=warmup)
    return CapturedStep(function, device, warmup)


class CapturedStep:
    """What :func:`capture` makes of a function.

    Attributes:
        function: the function itself.
        graphs: how many graphs there are now.
    """

    def __init__(self, function: Callable[..., Any], device: str | Device | None, warmup: int):
        if not isinstance(warmup, int) or warmup < 1:
            raise ValueError(f"capture: warmup must be an integer of at least 1, got {warmup!r}")
        self.function = function
        self._device = None if device is None else find_device(device)
        self._warmup = warmup
        # By the kind of the call, and for which leaves there is no gradient, of those to which it adds:
        self._runs: dict[Any, int] = {}  # plain runs
        self._graphs: OrderedDict[Any, _Graph] = OrderedDict()
        self._leaves: defaultdict[Any, _Leaves] = defaultdict(_Leaves)  # by the kind of the call
        self._short_lives = 0
        functools.update_wrapper(self, function)

    def __repr__(self) -> str:
        return f"<captured step {getattr(self.function, '__name__', self.function)!s}, {self.graphs} graphs>"

    @property
    def graphs(self) -> int:
        """How many graphs there are now."""
        return len(self._graphs)

    def reset(self) -> None:
        """Forget all graphs, and give back their memory: for changes that :func:`capture` cannot see."""
        self._graphs.clear()

    def __call__(self, *args: Any, **options: Any) -> Any:
        if recorder.current is not None:  # part of another captured step
            return self.function(*args, **options)
        tensors: list[Any] = []
        kind = _modes(), _split((args, options), tensors)
        device = self._device or _device_of(tensors)
        if not device.is_card:
            return self._run((args, options), device)
        leaves = self._leaves[kind]
        missing = leaves.without_gradient()
        key = kind, missing
        graph = self._graphs.get(key)
        if graph is not None:
            changed = graph.recording.what_changed()
            if changed is None:
                self._graphs.move_to_end(key)
                return graph.replay(tensors)
            del self._graphs[key]
            self._runs[key] = 0
            self._note_end(graph, changed)
        runs = self._runs.get(key, self._warmup if leaves.were_seen(missing) else 0) + 1
        self._runs[key] = runs
        if runs <= self._warmup:
            return self._run((args, options), device, leaves)
        graph = _Graph(self.function, (args, options), tensors, device, leaves.touched())
        if more := leaves.add(graph.recording.gradients):
            for other in [other for other in self._graphs if other[0] == kind]:
                del self._graphs[other]  # whose key is too short
        self._graphs[kind, (*missing, *more)] = graph
        if len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return graph.run()

    def _run(self, arguments: tuple, device: Device, leaves: _Leaves | None = None) -> Any:
        """The function itself, on ``device``, watched for what no replay can do."""
        moved = _join(arguments, lambda tensor: _as_tensor(tensor).to(device))
        recording = Recording(device)
        with _recorded(recording):
            outputs = _join(self.function(*moved[0], **moved[1]), _detached)
        if leaves is not None:
            leaves.add(recording.gradients)
        return outputs

    def _note_end(self, graph: _Graph, changed: str) -> None:
        """Warn, once, if graphs are given up again and again before they have been of use."""
        self._short_lives = self._short_lives + 1 if graph.replays < SHORT_LIFE else 0
        if self._short_lives == OFTEN:
            name = getattr(self.function, "__name__", self.function)
            warnings.warn(
                f"capture: {name} is recorded again and again, which is slower than no capture: between its "
                f"calls {changed} has changed, which a graph holds as it was",
                stacklevel=3,
            )


class _Leaves:
    """The leaves whose gradients calls of one kind touch."""

    def __init__(self) -> None:
        self._touched: dict[int, weakref.ref] = {}
        self._used: dict[int, weakref.ref] = {}
        self._found_none: defaultdict[int, set[bool]] = defaultdict(set)

    def touched(self) -> list[Any]:
        """All of them."""
        return [leaf for reference in self._touched.values() if (leaf := reference()) is not None]

    def add(self, gradients: LeafGradients) -> tuple[bool, ...]:
        """Add those that a run touched; for each whose gradient a graph makes use of, as none before it does,
        whether there was none."""
        self._touched |= {id(leaf): weakref.ref(leaf) for leaf in gradients.touched}
        for key, is_none in gradients.found_none.items():
            self._found_none[key].add(is_none)
        new = {key: found for key, found in gradients.used.items() if key not in self._used}
        self._used |= {key: leaf for key, (leaf, _) in new.items()}
        return tuple([before is None for _, before in new.values()])

    def were_seen(self, missing: tuple[bool, ...]) -> bool:
        """Whether runs have met these, as :meth:`without_gradient` gives them: their kernels are compiled."""
        return bool(missing) and all(
            is_none in self._found_none[key] for key, is_none in zip(self._used, missing, strict=True)
        )

    def without_gradient(self) -> tuple[bool, ...]:
        """For each leaf whose gradient is made use of, whether there is none."""
        return tuple([getattr(reference(), "grad", None) is None for reference in self._used.values()])


class _Graph:
    """One recorded run of a step.

    Args:
        function: the step.
        arguments: (its arguments, those by keyword); ``tensors`` are the tensors among them.
        device: the card.
        leaves: those whose gradients other runs of the step have touched.

    Attributes:
        replays: how often it was replayed.
    """

    def __init__(
        self,
        function: Callable,
        arguments: tuple,
        tensors: Sequence[Any],
        device: Device,
        leaves: Sequence[Any],
    ):
        self.device = device
        self.replays = 0
        self._in_flight: deque[tuple[Any, Any]] = deque()
        cuda = device.xp.cuda
        with device.active():
            pool = self._pool = cuda.MemoryPool()  # its memory is the graph's, and lives as long
            stream = cuda.Stream(non_blocking=True)
            words = device.xp.empty(MAX_LIVE_NUMBERS, np.uint64)
            self.recording = Recording(device, LiveNumbers(words), leaves)

            def allocate(size: int) -> Any:
                memory = pool.malloc(size)
                self.recording.owned.add(memory.mem.ptr)
                return memory

            with cuda.using_allocator(allocate):
                self._inputs = [_empty_like(t, device) for t in tensors]
            self._copy(tensors)
            with stream, cuda.using_allocator(allocate):
                inputs = iter(self._inputs)
                moved = _join(arguments, lambda _: next(inputs))
                stream.begin_capture()
                try:
                    with _recorded(self.recording):
                        outputs = function(*moved[0], **moved[1])
                    self._graph = stream.end_capture()
                except Exception as error:
                    _end_quietly(stream)
                    self.recording.take_back()
                    explained = _explained(error, self.recording)
                    if explained is None:
                        raise
                    raise explained from error
        self._outputs = _join(outputs, _detached)
        self.recording.finish()

    def replay(self, tensors: Sequence[Any]) -> Any:
        """Run the step on other inputs."""
        with self.device.active():
            self._copy(tensors)
            for change in self.recording.before_replay:
                change()
        self.replays += 1
        outputs = self.run()
        self.recording.gradients.leave()
        return outputs

    def run(self) -> Any:
        """Run the step on the inputs that the graph has: at first, those of the recorded run."""
        recording = self.recording
        with self.device.active():
            assert recording.numbers is not None
            recording.numbers.write()
            self._graph.launch()
        mark_cells_written(recording.cells.values())
        return self._outputs

    def _copy(self, tensors: Sequence[Any]) -> None:
        """Queue copies of tensors, or arrays of the host, into the inputs of the graph."""
        for own, given in zip(self._inputs, tensors, strict=True):
            self._copy_one(own._array, given)

    def _copy_one(self, own: Any, given: Any) -> None:
        device = self.device
        source = _as_tensor(given)._array
        if isinstance(given, Tensor) and given.device.is_card:
            if source is own:
                return
            if given.device is not device:
                source = device.from_card(source, given.device)
            device.xp.copyto(own, source)
            return
        own, source = in_memory_order(own), np.ascontiguousarray(in_memory_order(source))
        stream = device.xp.cuda.get_current_stream()
        own.set(source.reshape(own.shape), stream=stream)
        while self._in_flight and self._in_flight[0][0].done:
            self._in_flight.popleft()
        self._in_flight.append((stream.record(), source))  # pinned memory must stay until it has been read


@contextmanager
def _recorded(recording: Recording) -> Iterator[None]:
    """A context in which ``recording`` is told what runs."""
    recorder.current = recording
    before, launch.keep = launch.keep, recording.keep_all if recording.makes_a_graph else launch.keep
    try:
        yield
    finally:
        recorder.current, launch.keep = None, before


def _end_quietly(stream: Any) -> None:
    """End a capture that has failed; CUDA may say so again."""
    with suppress(RuntimeError):
        stream.end_capture()


def _explained(error: Exception, recording: Recording) -> CaptureError | None:
    """What to raise in place of ``error``, in which a recorded step ended; None if it is the step's own."""
    refused = getattr(error, "status", None) in STREAM_CAPTURE_ERRORS or "is capturing" in str(error)
    if isinstance(error, CaptureError) or not (refused or "Live" in str(error)):
        return None
    return CaptureError(
        f"capture: op {recording.op!r}, or what comes after it, cannot be recorded on {recording.device}: "
        f"{error}"
    )


# ---- tensors among other values ---------------------------------------------------------------------------


def _modes() -> tuple:
    """What else decides which kernels a step launches."""
    autocast = None if mode.autocast is None else tuple(mode.autocast.dtypes.items())
    precisions = get_float32_matmul_precision(), get_convolution_precision()
    return mode.grad, autocast, precisions, selected_kernels()


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else wrap(value, cpu)


def _lies_last(value: Any) -> bool:
    return is_channels_last(_as_tensor(value)._array)


def _empty_like(value: Any, device: Device) -> Tensor:
    """A tensor on ``device`` of the shape and the memory format of ``value``, whose elements are not set."""
    if _lies_last(value):
        return wrap(empty_channels_last(device, value.shape, value.dtype), device)
    return wrap(device.empty(value.shape, value.dtype), device)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _split(value: Any, tensors: list[Any]) -> Any:
    """What stays the same for one graph, hashable; the tensors in ``value`` are added to ``tensors``."""
    if _is_tensor(value):
        if isinstance(value, Tensor) and value.requires_grad:
            raise CaptureError(
                "capture: an argument requires a gradient, which would go to the graph's copy of it; "
                "find it in the step, by autograd.grad, and return it"
            )
        tensors.append(value)
        return Tensor, value.shape, value.dtype, _lies_last(value)
    if isinstance(value, dict):
        return dict, *[(key, _split(part, tensors)) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), *[_split(part, tensors) for part in value]
    if isinstance(value, (float, np.floating)):
        return type(value), repr(value)  # in which NaN is NaN, and -0 is not 0
    hash(value)
    return type(value), value


def _join(value: Any, replace: Callable[[Any], Any]) -> Any:
    """``value`` with its tensors replaced, in the order in which :func:`_split` finds them."""
    if _is_tensor(value):
        return replace(value)
    if isinstance(value, dict):
        return {key: _join(part, replace) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_join(part, replace) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _device_of(tensors: Sequence[Any]) -> Device:
    """The device of the first tensor, of the first on a card if there is one."""
    devices = [tensor.device if isinstance(tensor, Tensor) else cpu for tensor in tensors]
    if not devices:
        raise DeviceError(
            "capture: the step has no tensor among its arguments that tells its device: give device="
        )
    return next((device for device in devices if device.is_card), devices[0])

"""The errors that work on a device can end in, beside ValueError and TypeError for wrong arguments."""


class KernelCompileError(RuntimeError):
    """A kernel's source did not compile. The message holds the compiler's own lines."""


class KernelLaunchError(RuntimeError):
    """A kernel was launched and could not finish: a deadlock, a trap, or an error of the device.

    On a card such an error is seen late, by whatever asks the card next. The message says so, names the
    kernel launched last, and says whether the process can go on.
    """


class KernelAccessError(KernelLaunchError):
    """A kernel used memory that it must not use, or raced for it: a checked launch on the simulator ended.

    The message names the kernel, its block and thread, the lines of the source and the argument or shared
    variable, and says what to do.
    """


class KernelOrderError(KernelLaunchError):
    """A kernel's result depends on the order in which its threads run, as ``sim.stress`` has found.

    The message names the parameter, an element with its two values, and how to see them again.
    """


class OutOfMemoryError(RuntimeError, MemoryError):
    """A device has no memory left for an array. The message holds the sizes: wanted, in use, there at all."""

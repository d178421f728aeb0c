"""The errors that launching a kernel can end in, beside ValueError and TypeError for wrong arguments."""


class KernelCompileError(RuntimeError):
    """A kernel's source did not compile. The message holds the compiler's own lines."""


class KernelLaunchError(RuntimeError):
    """A kernel was launched and could not finish: a deadlock, a trap, or an error of the device."""

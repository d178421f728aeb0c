"""The operations: each with its reference, its gradient and its kernels side by side."""

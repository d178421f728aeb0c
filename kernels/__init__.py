"""The kernels: arrays in, arrays out. They know nothing of tensors, graphs or gradients.

- :mod:`minigrad.kernels.cpu`: Cython, on NumPy arrays;
- :mod:`minigrad.kernels.cuda`: CUDA, on CuPy arrays, or on NumPy arrays through the simulator,
  :mod:`minigrad.kernels.sim`.

``minigrad.kernels.list()`` shows them as the dispatcher knows them: by op, device, dtype and rung.
"""

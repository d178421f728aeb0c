"""What each card is given: kernels whose instructions it has, and blocks whose memory it has."""

import numpy as np
import pytest

from minigrad.kernels import cuda, sim
from minigrad.kernels.sim.architectures import SHARED_BYTES

TENSOR_CORES = "conv2d_tensor_core", "attention_tensor_core", "matmul_tensor_core"
HOPPER = (
    *("attention_wgmma", "attention_wgmma_grad", "conv2d_wgmma", "matmul_wgmma"),
    *("batch_norm_cluster", "recurrent_cluster"),
)
CAPABILITIES = {
    "sm_75": 75,
    "sm_80": 80,
    "sm_86": 86,
    "sm_89": 89,
    "sm_90a": 90,
    "sm_100": 100,
    "sm_120": 120,
}
OF_TASK = 1024  # bytes, at most, that a block keeps besides its tiles


@pytest.mark.parametrize("architecture", CAPABILITIES)
def test_kernels_are_chosen_by_what_a_card_has(architecture):
    x = np.zeros(1)
    with sim.architecture(architecture):
        capability = cuda.compute_capability(x)
        assert capability == CAPABILITIES[architecture]
        assert {getattr(cuda, name).is_supported(x) for name in TENSOR_CORES} == {capability >= 80}
        assert {getattr(cuda, name).is_supported(x) for name in HOPPER} == {capability == 90}


def test_only_the_kernels_for_hopper_are_compiled_for_it_alone():
    kernels = {name: vars(getattr(cuda, name)).get("_source") for name in cuda.MODULES}
    assert {name for name, source in kernels.items() if source and source.architecture} == set(HOPPER)
    assert {kernels[name].architecture for name in HOPPER} == {"sm_90a"}


def test_blocks_fit_the_shared_memory_of_every_card_that_launches_them():
    """Of a size that depends on the tile alone; attention asks the card (ops/attention.py)."""
    least = min(SHARED_BYTES[name] for name, capability in CAPABILITIES.items() if capability >= 80)
    tensor_core = cuda.matmul_tensor_core
    for tile in tensor_core.TILES:
        own = tensor_core.stages(tile) * tensor_core._pair_bytes(tile)
        assert own + OF_TASK <= least
    for module in (cuda.conv2d_tensor_core, cuda.conv2d_pointwise):
        assert max(map(module._shared_bytes, (64, 128))) + OF_TASK <= least
    for tiling in {**cuda.matmul_warp_tile.OF_VECTORS, **cuda.matmul_warp_tile.OF_ELEMENTS}:
        assert tiling.shared_bytes <= SHARED_BYTES["sm_75"]

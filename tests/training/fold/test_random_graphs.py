"""Random graphs with shape arithmetic, views and branches stay right at two sizes; the benchmark has 500 of each."""

import pytest
import torch

from tests.support.random_judge import judge_onnx, judge_torch

torch.set_num_threads(1)

# 147 chose its way by a size that was odd at every size tried; 497 and 1205 give empty outputs;
# 5470 holds a layer with a norm that nothing reads.
TORCH_SEEDS = (*range(9), 147, 497, 1205, 5470)
ONNX_SEEDS = (*range(18), 497, 990)


@pytest.mark.parametrize("seed", TORCH_SEEDS)
def test_a_random_network_stays_right(seed: int) -> None:
    """The folded network gives PyTorch's float64 numbers of the original, at the example's size and at another one."""
    verdict = judge_torch(seed)
    assert verdict.word == "right", verdict


@pytest.mark.parametrize("seed", ONNX_SEEDS)
def test_a_random_onnx_graph_stays_right(seed: int) -> None:
    """The folded graph gives onnxruntime's numbers of the original, at the example's size and at another one."""
    verdict = judge_onnx(seed)
    assert verdict.word == "right", verdict

"""Muon against the singular value decomposition, PyTorch's Muon and PyTorch's Adam."""

import copy

import pytest
import torch
from torch import nn

from foldserve.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(6, 25), (120, 84), (84, 84)])
def test_orthogonalised_keeps_singular_vectors_and_evens_their_values(shape):
    """In the basis of the decomposition the result is diagonal, its values near 1."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    core = left.T @ orthogonalised(matrix) @ right.T
    torch.testing.assert_close(core, torch.diag(core.diagonal()), atol=1e-9, rtol=0)
    assert core.diagonal()[:-5].min() > 0.6  # the least singular values of a square matrix are below what rounds reach
    assert core.diagonal().max() < 1.3


def problem(shape):
    """Return a parameter with a fixed start, and a function that gives it the gradient of its k-th step."""
    generator = torch.Generator().manual_seed(3)
    parameter = nn.Parameter(torch.randn(shape, generator=generator))

    def give_gradient(step):
        parameter.grad = torch.randn(shape, generator=torch.Generator().manual_seed(step))

    return parameter, give_gradient


@pytest.mark.parametrize("shape", [(16, 150), (120, 84)])
def test_matrices_move_as_by_pytorch(shape):
    """Four steps with momentum; PyTorch's own iterates in bfloat16, hence the tolerance."""
    ours, give_ours = problem(shape)
    theirs, give_theirs = problem(shape)
    start = ours.detach().clone()
    optimizer = Muon([ours], [], lr=0.1, momentum=0.9)
    reference = torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.0, adjust_lr_fn="original")
    for step in range(4):
        give_ours(step)
        give_theirs(step)
        optimizer.step()
        reference.step()
    moved, expected = ours.detach() - start, theirs.detach() - start
    assert (moved - expected).norm() < 0.03 * expected.norm()


def test_other_parameters_move_as_by_pytorchs_adam():
    """Five steps at the share of the learning rate that is Adam's."""
    ours, give_ours = problem((7,))
    theirs, give_theirs = problem((7,))
    optimizer = Muon([], [ours], lr=0.02, adam_share=0.5, betas=(0.8, 0.95))
    reference = torch.optim.Adam([theirs], lr=0.01, betas=(0.8, 0.95))
    for step in range(5):
        give_ours(step)
        give_theirs(step)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_convolution_moves_as_the_matrix_of_its_filters():
    """(6, 1, 5, 5) is (6, 25) for every step."""
    kernel, give_kernel = problem((6, 1, 5, 5))
    matrix = nn.Parameter(kernel.detach().reshape(6, 25).clone())
    optimizer = Muon([kernel, matrix], [], lr=0.1)
    for step in range(3):
        give_kernel(step)
        matrix.grad = kernel.grad.reshape(6, 25).clone()
        optimizer.step()
    torch.testing.assert_close(kernel.reshape(6, 25), matrix)


def test_what_has_no_gradient_stays_and_the_state_can_be_loaded():
    """A frozen weight is left alone; a restored optimizer goes on exactly as the one it was saved from."""
    frozen = nn.Parameter(torch.ones(3, 3))
    weight, give = problem((4, 5))
    optimizer = Muon([frozen, weight], [], lr=0.1)
    give(0)
    optimizer.step()
    assert torch.equal(frozen, torch.ones(3, 3))
    twin = nn.Parameter(weight.detach().clone())
    restored = Muon([nn.Parameter(torch.ones(3, 3)), twin], [], lr=0.1)
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    give(1)
    twin.grad = weight.grad.clone()
    optimizer.step()
    restored.step()
    assert torch.equal(weight, twin)

"""The preset `book` keeps its bits: weights after two steps, as they were before the first rename of the code.

The images are made up with a fixed seed, in the shapes of the real ones: which kernels run, and how they round, depends
on shapes and threads and not on what the pixels show. 352 rows give the two steps that the book's recipe has, the odd
one of 96 rows and a full one of 256.

A processor of another kind may round otherwise. `plain_training` says whether this one does: it is the book's loop in
PyTorch's own layers, with nothing of ours in it. Where its weights have the recorded digest, ours must have theirs; on
any machine ours must lie beside the plain ones.
"""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from foldserve.training.config import Recipe
from foldserve.training.dataset import FashionMNIST
from foldserve.training.fit import fit
from foldserve.training.model import build

# Recorded at revision 5e4c84d with torch 2.13.0: threads -> SHA-256 of the weights.
RECORDED = {
    1: "5af682adc762e47e18df47349e51e00fdb543e7542b7d5dfa0376d829b46de23",
    2: "1454a22e1999abae9bd9aa1f57850b3f25ecd03958126521fc32f4b60cbda7ae",
}
PLAIN = {
    1: "9d44e8f96a0c7f1370fb54966b87178b9deb50351f0a72e129fb9a7fc3af03cd",
    2: "0046edebb5aa0586a7874c5fef03f57f467d447ba0c7bc80eb2074a6bc43a758",
}
CPU = torch.device("cpu")


def digest(state):
    """Return the SHA-256 over names, shapes and bytes of a state dict."""
    content = hashlib.sha256()
    for name, tensor in state.items():
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content.update(tensor.detach().numpy().tobytes())
    return content.hexdigest()


def two_steps_of_images():
    """Return (352, 1, 28, 28) uint8 with about the share of black that clothes on black have, and labels (352,)."""
    generator = np.random.default_rng(8)
    images = generator.integers(0, 256, (352, 1, 28, 28)) * generator.integers(0, 2, (352, 1, 28, 28))
    return images.astype(np.uint8), generator.integers(0, 10, 352).astype(np.int64)


def our_training(seed=0):
    """Return the state dict that `fit` leaves after an epoch of `book`."""
    images, labels = two_steps_of_images()
    dataset = FashionMNIST(images, labels, images[:20], labels[:20], source="made up")
    recipe = Recipe(preset="book", epochs=1, seed=seed)
    model = build(recipe)
    fit(model, dataset, recipe, CPU)
    return model.state_dict()


def plain_network():
    """Return the book's BN-LeNet in PyTorch's layers, initial weights as in the book, under our layers' names."""
    layers = {
        "conv1": nn.Conv2d(1, 6, 5),
        "norm1": nn.BatchNorm2d(6),
        "sigmoid1": nn.Sigmoid(),
        "pool1": nn.AvgPool2d(2, 2),
        "conv2": nn.Conv2d(6, 16, 5),
        "norm2": nn.BatchNorm2d(16),
        "sigmoid2": nn.Sigmoid(),
        "pool2": nn.AvgPool2d(2, 2),
        "flatten": nn.Flatten(),
        "dense1": nn.Linear(256, 120),
        "norm3": nn.BatchNorm1d(120),
        "sigmoid3": nn.Sigmoid(),
        "dense2": nn.Linear(120, 84),
        "norm4": nn.BatchNorm1d(84),
        "sigmoid4": nn.Sigmoid(),
        "dense3": nn.Linear(84, 10),
    }
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return network


def plain_training(seed=0):
    """Return the state dict after the same two steps of a loop as in the book."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = plain_network()
    images, labels = two_steps_of_images()
    order_seed = int(np.random.SeedSequence([seed, 1]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    order = torch.randperm(352, generator=torch.Generator().manual_seed(order_seed))
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    for rows in (order[:96], order[96:]):
        loss = nn.functional.cross_entropy(network(torch.as_tensor(images)[rows] / 255), torch.as_tensor(labels)[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.state_dict()


@pytest.mark.parametrize("threads", [1, 2])
def test_book_keeps_its_bits(threads):
    """On a machine that rounds as the one of the record, two steps of `book` give the recorded weights bit for bit."""
    torch.set_num_threads(threads)
    if digest(plain_training()) != PLAIN[threads]:
        pytest.skip("this processor or this PyTorch rounds otherwise; the test below compares with plain layers")
    assert digest(our_training()) == RECORDED[threads]


@pytest.mark.parametrize("threads", [1, 2])
def test_book_is_the_plain_loop(threads):
    """On any machine two steps of `book` lie within float32's rounding of the plain loop's."""
    torch.set_num_threads(threads)
    ours, plain = our_training(), plain_training()
    assert list(ours) == list(plain)
    for name, expected in plain.items():
        assert (ours[name] - expected).abs().max() <= 5e-5 * expected.abs().max(), name


def test_the_digest_sees_one_bit():
    """Another seed, and one weight moved to its neighbour in float32, have another digest."""
    state = our_training()
    moved = {name: tensor.clone() for name, tensor in state.items()}
    moved["dense3.bias"][0] = torch.nextafter(moved["dense3.bias"][0], torch.tensor(1e9))
    assert len({digest(state), digest(our_training()), digest(our_training(seed=1)), digest(moved)}) == 3

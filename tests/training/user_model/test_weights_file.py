"""Files of weights as people have them: the answers of PyTorch's own loading, or one sentence that says why not."""

import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from foldserve.training.errors import ConfigError
from foldserve.training.user_model.weights_file import load_weights


def network(classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, classes))


@pytest.fixture
def trained() -> nn.Sequential:
    """A network whose every tensor differs from a fresh one."""
    torch.manual_seed(1)
    model = network()
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand_like(tensor.float()) + 0.5)
    return model.eval()


WRITTEN = {
    "w.safetensors": lambda state, path: save_file(state, path),
    "w.pt": torch.save,
    "w.pth": torch.save,
    "w": torch.save,
    "w.weights": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
}
FORMS = {
    "as it is": (lambda state: state, ""),
    "DataParallel": (lambda state: {f"module.{n}": t for n, t in state.items()}, "'module.' taken off"),
    "compiled": (lambda state: {f"_orig_mod.{n}": t for n, t in state.items()}, "'_orig_mod.' taken off"),
    "without counters": (lambda state: {n: t for n, t in state.items() if "num_batches" not in n}, ""),
    "in half": (lambda state: {n: t.half() if t.is_floating_point() else t for n, t in state.items()}, "float16"),
}


@pytest.mark.parametrize("file", WRITTEN)
@pytest.mark.parametrize("form", FORMS)
def test_what_people_save_is_read(file, form, trained, tmp_path):
    """Every form in every format gives the network that was saved, and says what it recognised."""
    change, note = FORMS[form]
    WRITTEN[file](change(trained.state_dict()), tmp_path / file)
    model = network()
    notes = load_weights(model, tmp_path / file)
    assert note in " ".join(notes)
    rows = torch.randn(6, 4)
    torch.testing.assert_close(model.eval()(rows), trained(rows), rtol=0.0, atol=0.01 if form == "in half" else 0.0)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_a_checkpoint_holds_the_state_dict_under_a_key(key, trained, tmp_path):
    """What a training loop saves beside the weights is passed over; the key is named."""
    state = {f"module.{name}": tensor for name, tensor in trained.state_dict().items()}
    torch.save({"epoch": 3, key: state, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
    model = network()
    notes = load_weights(model, tmp_path / "w.pth")
    assert f"taken from '{key}'" in notes[0]
    torch.testing.assert_close(model.state_dict()["3.weight"], trained.state_dict()["3.weight"])


LOOPS = {
    "params_ema": lambda s: {"params_ema": s},
    "checkpoint.state_dict": lambda s: {"checkpoint": {"state_dict": s}, "optimizer": {"state": {"a": s}}},
    "model.state_dict": lambda s: {"model": {"state_dict": s, "config": {"width": 1}}, "lr_scheduler": s},
    "state_dict": lambda s: {"state_dict": s, "state_dict_ema": s, "optimizer_states": [{"a": s}], "callbacks": {}},
    "net_state": lambda s: {"net_state": {**s, "_extra_state": None}, "epoch": torch.tensor(3)},
}


@pytest.mark.parametrize("place", LOOPS)
def test_whatever_a_training_loop_calls_its_weights_they_are_found(place, trained, tmp_path):
    """One state dict in the file is the one that is meant, wherever it stands; what an optimizer keeps is none."""
    torch.save(LOOPS[place](trained.state_dict()), tmp_path / "w.ckpt")
    model = network()
    (note,) = load_weights(model, tmp_path / "w.ckpt")
    assert f"taken from {place!r} in w.ckpt" in note
    assert ("beside 'state_dict_ema'" in note) == (place == "state_dict")
    torch.testing.assert_close(model.state_dict()["3.weight"], trained.state_dict()["3.weight"])


def test_of_several_state_dicts_under_names_of_their_own_none_is_guessed(trained, tmp_path):
    """A generator and its critic: the sentence names both."""
    torch.save({"netG": trained.state_dict(), "netD": {"x": torch.zeros(2)}}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"holds several state dicts: 'netG', 'netD'; save the one that is meant"):
        load_weights(network(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {f"encoder.{n}x": t for n, t in s.items()}, "no name fits: the file is of another architecture"),
        (lambda s: {n: t for n, t in s.items() if "running" not in n}, "written without buffers"),
        (lambda s: {**s, "3.weight": torch.zeros(9, 5), "3.bias": torch.zeros(9)}, "another number of classes"),
        (lambda s: {**s, "4.weight": torch.zeros(3, 3)}, "makes a smaller network"),
        (lambda s: {n: t for n, t in s.items() if not n.startswith("3")}, "makes a larger network"),
    ],
)
def test_what_does_not_fit_is_named_with_its_likely_cause(change, message, trained, tmp_path):
    """The user learns which of the usual mistakes it was."""
    torch.save(change(trained.state_dict()), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_weights(network(), tmp_path / "w.pt")


class Evil:
    """Would run code if it were unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file was run')",))


def test_no_code_of_a_file_is_run(tmp_path):
    """A file with code in it, a whole module and junk are refused in a sentence that says what to save."""
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"0.weight": Evil()}))
    torch.save(network(), tmp_path / "module.pt")
    (tmp_path / "junk.pt").write_bytes(b"junk" * 100)
    for name in ("evil.pt", "module.pt", "junk.pt"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_weights(network(), tmp_path / name)
    with pytest.raises(ConfigError, match=r"save model\.state_dict"):
        load_weights(network(), tmp_path / "module.pt")


def test_tied_weights_need_only_one_of_their_names(tmp_path):
    """safetensors keeps a shared tensor once; the other name is not missing."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    save_file({"0.weight": torch.eye(4)}, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert torch.equal(model[1].weight, torch.eye(4))


class Plain(nn.Module):
    """Keeps two statistics under names of the test's choice, where no file can hold them."""

    def __init__(self, mean: str, var: str, persistent: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        for name, value in ((mean, torch.zeros(4)), (var, torch.ones(4))):
            if persistent:
                setattr(self, name, value)
            else:
                self.register_buffer(name, value, persistent=False)


@pytest.mark.parametrize("names", [("moving_mean", "moving_var"), ("m", "v"), ("a", "b")])
@pytest.mark.parametrize("plain", [True, False])
def test_statistics_that_the_file_cannot_hold_are_named(names, plain, tmp_path):
    """Whatever they are called: zeros and ones side by side in no state dict are a norm that was not set."""
    model = nn.Sequential(Plain(*names, plain))
    save_file({"0.scale": torch.rand(4)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=rf"cannot hold 0\.{names[0]}, 0\.{names[1]}"):
        load_weights(model, tmp_path / "w.safetensors")


def test_constants_that_the_factory_sets_are_no_statistics_left_unset(tmp_path):
    """ImageNet's mean and std as plain attributes are what the factory made them, and right."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False))
    model[0].mean, model[0].std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    model[0].state = torch.zeros(3)[:0]
    save_file({"weight": torch.eye(3)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="does not fit"):
        load_weights(model, tmp_path / "w.safetensors")
    save_file({"0.weight": torch.eye(3)}, tmp_path / "w.safetensors")
    assert load_weights(model, tmp_path / "w.safetensors") == ()

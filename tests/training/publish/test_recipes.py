"""Recipes read from torchvision, timm and Hugging Face, compared picture by picture with what those libraries do."""

import io
import json
import math
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from foldserve.format.image import ImageRecipe
from foldserve.format.image_options import Normalisation
from foldserve.pictures import decode
from foldserve.training.errors import ConfigError
from foldserve.training.publish.recipes import read_image
from tests.support import pictures
from tests.support.vision import library

pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # of Pillow's convert

FILTERS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
RECIPES, PICTURES = 8, int(os.environ.get("RECIPE_PICTURES", "25"))  # of each recipe


def assert_same_pixels(transform: Callable[[Image.Image], torch.Tensor], source: object, rng) -> None:
    """Compare a recipe with the transform that it was read from, byte for byte, after undoing mean and std."""
    recipe, normalisation = read_image(source)
    for _ in range(PICTURES):
        file = pictures.drawn(rng)
        try:
            expected = transform(Image.open(io.BytesIO(file)).convert("RGB")).double().numpy()
        except ValueError:  # timm reduces a long line to a height of 0, which is no picture
            continue
        pixels = decode(file, recipe)
        assert pixels.shape == expected.shape == recipe.shape
        mean, std = (np.reshape(numbers, (-1, 1, 1)) for numbers in (normalisation.mean, normalisation.std))
        assert np.abs((expected * std + mean) / normalisation.scale - pixels).max() < 0.01, (recipe, source)


def drawn_compose(rng: np.random.Generator, transforms: Any, mode: Any) -> Any:
    """A Compose as people write it: some of the steps, with sizes and filters at random."""
    height, width = (int(side) for side in rng.integers(1, 40, 2))
    filter = mode(str(rng.choice(FILTERS)))
    grey = int(rng.choice([1, 3]))
    steps: list[Any] = []
    if rng.random() < 0.7:
        steps = [transforms.Resize(int(rng.integers(1, 60)), filter), transforms.CenterCrop((height, width))]
    else:
        steps = [transforms.Resize((height, width), filter)]
    if is_grey := rng.random() < 0.3:
        steps.insert(int(rng.integers(0, len(steps) + 1)), transforms.Grayscale(grey))
    if rng.random() < 0.5:
        steps.append(transforms.ToTensor())
    else:
        steps += [transforms.PILToTensor(), transforms.ConvertImageDtype(torch.float32)]
    if rng.random() < 0.8:
        channels = 1 if is_grey and grey == 1 else 3
        steps.append(transforms.Normalize(rng.random(channels).tolist(), (rng.random(channels) + 0.1).tolist()))
    return transforms.Compose(steps)


def test_a_compose_of_torchvision_gives_its_pixels():
    """Whatever sizes and filters somebody chose, and however odd the picture is."""
    transforms = library("torchvision.transforms")
    rng = np.random.default_rng(1)
    for _ in range(RECIPES):
        compose = drawn_compose(rng, transforms, transforms.InterpolationMode)
        assert_same_pixels(compose, compose, rng)


def test_the_preset_of_torchvisions_weights_gives_its_pixels():
    """`weights.transforms()`, which is one object and no Compose."""
    presets = library("torchvision.transforms._presets")
    rng = np.random.default_rng(2)
    for _ in range(RECIPES):
        crop, resize = (int(side) for side in rng.integers(1, 60, 2))
        mode = presets.InterpolationMode(str(rng.choice(["nearest", "bilinear", "bicubic"])))
        preset = presets.ImageClassification(crop_size=crop, resize_size=resize, interpolation=mode)
        assert_same_pixels(preset, preset, rng)


def test_timms_data_config_gives_its_pixels():
    """All crop modes, square or not, read from the numbers and from the transforms."""
    data = library("timm.data")
    rng = np.random.default_rng(3)
    for _ in range(RECIPES):
        height, width = (int(side) for side in rng.integers(2, 40, 2))
        config = {
            "input_size": (3, height, height if rng.random() < 0.5 else width),
            "interpolation": str(rng.choice(["bilinear", "bicubic", "lanczos", "nearest"])),
            "crop_pct": float(rng.choice([0.875, 0.9, 0.95, 1.0])),
            "crop_mode": str(rng.choice(["center", "squash", "border"])),
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.3, 0.1),
        }
        transform = data.create_transform(**config)
        assert_same_pixels(transform, config, rng)
        assert read_image(transform)[0] == read_image(config)[0]


def test_the_usual_weights_give_the_usual_recipe():
    """ResNet-18 as everyone has it, from the weights or from what they give."""
    weights = library("torchvision.models").ResNet18_Weights.DEFAULT
    recipe = ImageRecipe(height=224, width=224, rule="shorter", resize=(256,), crop=(224, 224))
    normalisation = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for source in (weights, weights.transforms, weights.transforms(), "imagenet", (recipe, normalisation)):
        assert read_image(source, (3, 224, 224)) == (recipe, normalisation)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (
            "[T.Resize(8), T.CenterCrop(8), T.RandomHorizontalFlip(), T.ToTensor()]",
            "RandomHorizontalFlip is not",
        ),
        ("[T.Resize(8), T.CenterCrop(8), T.Pad(2), T.ToTensor()]", "Pad is not a step"),
        ("[T.Resize(8), T.CenterCrop(8), T.Lambda(abs), T.ToTensor()]", "Lambda is not a step"),
        ("[T.ToTensor(), T.Resize((8, 8))]", "Resize comes after the step that makes a tensor"),
        ("[T.CenterCrop(8), T.Resize((8, 8)), T.ToTensor()]", "Resize comes after a step that set crop"),
        ("[T.Resize(8), T.Resize((8, 8)), T.ToTensor()]", "Resize comes after a step that set filter"),
        ("[T.Resize(8, max_size=20), T.ToTensor()]", "max_size=20"),
        ("[T.Resize((8, 8))]", "got no ToTensor"),
        ("[T.Resize((8, 8)), T.Normalize([0.5], [0.5])]", "Normalize comes before"),
        ("[T.Resize(8), T.ToTensor()]", "no size of the result"),
        ("[T.Resize((8, 8)), T.RandomApply([T.Grayscale()]), T.ToTensor()]", "RandomApply is not a plain sequence"),
    ],
)
def test_what_no_recipe_can_express_is_refused_by_name(steps, message):
    """A step left out in silence would give other answers in silence."""
    transforms = library("torchvision.transforms")
    with pytest.raises(ConfigError, match=message):
        read_image(transforms.Compose(eval(steps, {"T": transforms})))


def huggingface(**changes: Any) -> dict[str, Any]:
    """The file of a ViT."""
    return {
        "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 20, "width": 30},
        "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2],
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"rule": "exact", "resize": (20, 30), "height": 20, "width": 30}),
        ({"size": 20}, {"rule": "exact", "resize": (20, 20), "height": 20, "width": 20}),
        ({"image_processor_type": "CLIPImageProcessor", "size": 20, "do_center_crop": True, "crop_size": 16},
         {"rule": "shorter", "resize": (20,), "crop": (16, 16), "height": 16, "width": 16}),
        ({"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": {"height": 8, "width": 9}},
         {"rule": "shorter", "resize": (20,), "crop": (8, 9), "height": 8, "width": 9}),
        ({"image_processor_type": "ConvNextFeatureExtractor", "size": 21, "crop_pct": 0.875},
         {"rule": "shorter", "resize": (24,), "crop": (21, 21), "height": 21, "width": 21}),
        ({"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
         {"rule": "exact", "resize": (384, 384), "height": 384, "width": 384}),
        ({"image_processor_type": "MobileViTImageProcessor", "do_normalize": False},
         {"rule": "exact", "resize": (20, 30), "height": 20, "width": 30, "colour": "BGR"}),
        ({"image_processor_type": "LevitImageProcessor", "size": {"shortest_edge": 21}, "do_center_crop": True,
          "crop_size": 21}, {"rule": "shorter", "resize": (24,), "crop": (21, 21), "height": 21, "width": 21}),
        ({"image_processor_type": "SegformerImageProcessor", "do_reduce_labels": True},
         {"rule": "exact", "resize": (20, 30), "height": 20, "width": 30}),
        ({"resample": 1}, {"rule": "exact", "resize": (20, 30), "height": 20, "width": 30, "filter": "lanczos"}),
    ],
)  # fmt: skip
def test_hugging_faces_file_gives_its_recipe(tmp_path, changes, expected):
    """As a mapping and as the file that lies beside the weights."""
    config = huggingface(**changes)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(config))
    recipe = ImageRecipe(**{"filter": "bicubic", "rounding": "down"} | expected)
    assert read_image(config)[0] == read_image(file)[0] == read_image(f"@{file}")[0] == recipe


PROCESSORS = ("ViT", "DeiT", "ConvNext", "CLIP", "Segformer", "MobileNetV1", "MobileNetV2", "MobileViT", "Beit", "Bit",
              "EfficientNet", "Siglip", "ChineseCLIP", "Levit", "Pvt", "Blip")  # fmt: skip


@pytest.mark.parametrize("kind", PROCESSORS)
def test_hugging_faces_processor_gives_its_pixels(kind):
    """What transformers itself makes of odd pictures, by default and with Pillow, where it is installed."""
    transformers = pytest.importorskip("transformers")
    library("torchvision.transforms")
    processor = getattr(transformers, f"{kind}ImageProcessorPil", None) or getattr(
        transformers, f"{kind}ImageProcessor"
    )
    made = processor()
    config = made.to_dict() | {"image_processor_type": f"{kind}ImageProcessor"}

    def transform(image: Image.Image) -> torch.Tensor:
        opaque = Image.fromarray(np.asarray(image))  # what is left of a palette's transparency would be laid over white
        return torch.from_numpy(np.asarray(made(opaque, return_tensors="np")["pixel_values"][0]))

    assert_same_pixels(transform, config, np.random.default_rng(4))


def test_hugging_faces_crop_is_its_own():
    """The middle as `center_crop` of transformers cuts it: floor, and ceiling where it pads."""
    config = huggingface(do_resize=False, do_center_crop=True, crop_size={"height": 8, "width": 8})
    recipe = read_image(config)[0]
    for height, width in ((11, 11), (5, 13), (8, 7), (1, 1)):
        pixels = np.random.default_rng(height).integers(1, 256, (height, width, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        canvas = np.zeros((max(8, height), max(8, width), 3), np.uint8)
        top, left = (math.ceil((max(8, side) - side) / 2) for side in (height, width))
        canvas[top : top + height, left : left + width] = pixels
        top, left = ((side - 8) // 2 if side > 8 else 0 for side in (height, width))
        expected = canvas[top : top + 8, left : left + 8].transpose(2, 0, 1)
        assert np.array_equal(decode(file.getvalue(), recipe), expected)


def test_hugging_faces_numbers_become_arithmetic():
    """Factor, mean and std, each where it is done; an offset of one moves the mean."""
    assert read_image(huggingface())[1] == Normalisation((0.5,) * 3, (0.2,) * 3, 1 / 255)
    assert read_image(huggingface(do_normalize=False))[1] == Normalisation()
    assert read_image(huggingface(do_rescale=False))[1].scale == 1
    offset = huggingface(rescale_factor=1 / 127.5, rescale_offset=True, do_normalize=False)
    assert read_image(offset)[1] == Normalisation((1.0,) * 3, (1.0,) * 3, 1 / 127.5)
    # One that never normalises, whatever its file says; and one that divides by the deviation twice.
    assert read_image(huggingface(image_processor_type="MobileViTImageProcessor"))[1] == Normalisation()
    top = huggingface(image_processor_type="EfficientNetImageProcessor")
    assert read_image(top)[1] == Normalisation((0.5,) * 3, (0.2 * 0.2,) * 3, 1 / 255)
    assert read_image(top | {"do_normalize": False})[1] == Normalisation((0.0,) * 3, (0.2,) * 3, 1 / 255)
    assert read_image(top | {"include_top": False})[1] == Normalisation((0.5,) * 3, (0.2,) * 3, 1 / 255)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_processor_type": "FlavaImageProcessor"}, "FlavaImageProcessor has steps that are not known here"),
        ({"include_top": True}, "include_top is True"),
        ({"do_pad": True}, "do_pad is True"),
        ({"do_thumbnail": True}, "do_thumbnail is True"),
        ({"resample": None}, "resample is None"),
        ({"resample": 9}, "resample is 9"),
        ({"size": {"longest_edge": 9}}, "size is {'longest_edge': 9}"),
    ],
)
def test_what_hugging_face_does_beyond_a_recipe_is_refused(changes, message):
    """By the name of the key."""
    with pytest.raises(ConfigError, match=message):
        read_image(huggingface(**changes))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"input_size": (3, 8, 8), "crop_mode": "diagonal"}, "crop_mode is 'diagonal'"),
        ({"input_size": (3, 8, 8), "crop_border_pixels": 4}, "crop_border_pixels is 4"),
        ({"input_size": (3, 8, 8), "interpolation": "random"}, "filter is 'random'"),
    ],
)
def test_what_timm_does_beyond_a_recipe_is_refused(config, message):
    """By the name of the key."""
    with pytest.raises(ConfigError, match=message):
        read_image(config)


def test_a_network_of_timm_knows_its_recipe():
    """Given the network itself, or the file that its weights come with."""
    config = {"input_size": [3, 8, 8], "crop_pct": 1.0, "interpolation": "bilinear"}
    network = SimpleNamespace(pretrained_cfg=config)
    assert read_image(network) == read_image(config) == read_image({"architecture": "x", "pretrained_cfg": config})


def test_a_recipe_of_another_size_than_the_model_is_refused():
    """Before anything is exported, with both sizes."""
    with pytest.raises(ConfigError, match=r"224 x 224 pixels .*takes 192 x 192"):
        read_image("imagenet", (3, 192, 192))

"""The definitions and files of the zoo: what each is called, how it is made, and the shapes that it is tried at.

Weights are the initial ones, with statistics that are not the identity; nothing is downloaded. Everything comes from
packages of `zoo-requirements.txt`, whose compiled parts are not needed.
"""

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

Shape = tuple[int, ...]
IMAGE: tuple[Shape, Shape] = ((2, 3, 128, 128), (3, 3, 96, 160))
FIXED: tuple[Shape, Shape] = ((2, 3, 224, 224), (3, 3, 224, 224))
BLOCKS: tuple[Shape, Shape] = ((2, 3, 256, 256), (3, 3, 256, 256))  # maps that blocks of eight cover
VIDEO: tuple[Shape, Shape] = ((2, 3, 8, 56, 56), (1, 3, 12, 64, 48))


@dataclass(frozen=True)
class Entry:
    """One definition or file.

    Attributes:
        name: package and model, such as "timm resnet18".
        make: gives an nn.Module, or the path of an ONNX file.
        shapes: of the first input, for the example and for a second run; none for a file, which declares its own.
    """

    name: str
    make: Callable[[], Any]
    shapes: tuple[Shape, Shape] | None = IMAGE


TIMM = """
resnet18 resnet26d resnext50_32x4d seresnet18 skresnet18 ecaresnet26t resnest14d res2net50_14w_8s
legacy_seresnet18
densenet121 dla34 hrnet_w18_small efficientnet_b0 tf_efficientnet_b0 tf_efficientnetv2_b0 mobilenetv2_100 tinynet_e
mobilenetv3_small_100 mobilenetv4_conv_small mnasnet_100 mixnet_s tf_mixnet_s ghostnet_100 ghostnetv2_100 hardcorenas_a
regnetx_002 regnety_002 repvgg_a0 mobileone_s0 fastvit_t8 repvit_m1 repghostnet_050 rexnet_100 lcnet_050
selecsls42
ese_vovnet19b_dw cspresnet50 cspdarknet53 darknet53 inception_v3 inception_v4 xception41 legacy_xception dpn68
resnetv2_50
starnet_s1 convmixer_768_32 hgnetv2_b0 mobilevitv2_050 swiftformer_xs"""
TIMM_FIXED = """
levit_128s tiny_vit_5m_224 efficientvit_m0 efficientvit_b0 xcit_nano_12_p16_224 efficientformer_l1
efficientformerv2_s0 shvit_s1 halonet26t visformer_tiny"""
TORCHVISION = """resnet18 resnext50_32x4d vgg11_bn densenet121 mobilenet_v2 mobilenet_v3_small efficientnet_b0
efficientnet_v2_s inception_v3 googlenet shufflenet_v2_x0_5 mnasnet0_5 regnet_y_400mf lraspp_mobilenet_v3_large
deeplabv3_mobilenet_v3_large fcn_resnet50"""
TORCHVISION_VIDEO = ["r3d_18", "mc3_18", "r2plus1d_18"]
PYTORCHCV = """resnet18 preresnet18 sepreresnet18 densenet121 condensenet74_c4_g4 shufflenet_g1_wd4 shufflenetv2_wd2
mobilenet_wd4 igcv3_wd4 menet108_8x1_g3 sqnxt23_w1 peleenet bninception diracnet18v2"""
ULTRALYTICS = ["yolov5n", "yolov8n", "yolov8n-seg", "yolov9t", "yolo11n", "yolo12n"]


def entries() -> list[Entry]:
    """Return the zoo, small families first."""
    return [
        *_files(),
        *_speech(),
        *_monai(),
        *_segmentation(),
        *_ultralytics(),
        *_pytorchcv(),
        *_torchvision(),
        *_timm(),
    ]


def _timm() -> Iterator[Entry]:
    for name in (TIMM + TIMM_FIXED).split():
        shapes = FIXED if name in TIMM_FIXED.split() else IMAGE
        yield Entry(f"timm {name}", _of("timm", "create_model", name), BLOCKS if name == "halonet26t" else shapes)


def _torchvision() -> Iterator[Entry]:
    for name in [*TORCHVISION.split(), *TORCHVISION_VIDEO]:
        more = {"weights": None, "init_weights": False} if name in ("inception_v3", "googlenet") else {"weights": None}
        more |= {"weights_backbone": None} if "_mobilenet_v3_large" in name or "fcn" in name else {}
        shapes = VIDEO if name in TORCHVISION_VIDEO else IMAGE
        yield Entry(f"torchvision {name}", _of("torchvision.models", "get_model", name, **more), shapes)


def _pytorchcv() -> Iterator[Entry]:
    for name in PYTORCHCV.split():
        yield Entry(f"pytorchcv {name}", _of("pytorchcv.model_provider", "get_model", name), FIXED)


def _ultralytics() -> Iterator[Entry]:
    for name in ULTRALYTICS:
        kind = "SegmentationModel" if name.endswith("seg") else "DetectionModel"
        yield Entry(f"ultralytics {name}", _of("ultralytics.nn.tasks", kind, f"{name}.yaml", verbose=False))


def _segmentation() -> Iterator[Entry]:
    for name, encoder in [("Unet", "resnet18"), ("UnetPlusPlus", "resnet18"), ("FPN", "mobilenet_v2")]:
        yield _smp(name, encoder)
    for name, encoder in [("Linknet", "resnet18"), ("PSPNet", "resnet18"), ("PAN", "resnet18"), ("MAnet", "resnet18")]:
        yield _smp(name, encoder)
    yield _smp("DeepLabV3Plus", "timm-efficientnet-b0")


def _smp(name: str, encoder: str) -> Entry:
    make = _of("segmentation_models_pytorch", name, encoder, encoder_weights=None)
    return Entry(f"smp {name} {encoder}", make)


def _monai() -> Iterator[Entry]:
    nets, cube = "monai.networks.nets", ((2, 1, 32, 32, 32), (1, 1, 48, 32, 40))
    net = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2)}
    yield Entry("monai UNet 3-D", _of(nets, "UNet", norm="BATCH", num_res_units=2, **net), cube)
    yield Entry("monai BasicUNet", _of(nets, "BasicUNet", 3, 1, 2, features=(8, 8, 16, 32, 32, 8), norm="batch"), cube)
    yield Entry("monai VNet", _of(nets, "VNet", 3, 1, 2), cube)
    yield Entry("monai HighResNet", _of(nets, "HighResNet", 3, 1, 2), cube)
    yield Entry("monai DenseNet121", _of(nets, "DenseNet121", 2, 3, 2))
    yield Entry("monai SEResNet50", _of(nets, "SEResNet50", spatial_dims=2, in_channels=3, num_classes=2))
    yield Entry("monai resnet10", _of(nets, "resnet10", n_input_channels=1), cube)


def _speech() -> Iterator[Entry]:
    models, sound = "speechbrain.lobes.models", ((2, 120, 40), (3, 90, 40))
    yield Entry("speechbrain ECAPA_TDNN", _of(f"{models}.ECAPA_TDNN", "ECAPA_TDNN", 40, lin_neurons=32), sound)
    yield Entry("speechbrain Xvector", _of(f"{models}.Xvector", "Xvector", in_channels=40), sound)
    yield Entry("speechbrain ResNet", _of(f"{models}.ResNet", "ResNet", input_size=40), sound)


def _files() -> Iterator[Entry]:
    for package, below in (("rapidocr", "models"), ("rapidocr_onnxruntime", "models"), ("onnx", "backend/test/data")):
        spec = importlib.util.find_spec(package)
        root = Path(spec.origin).parent / below if spec is not None and spec.origin else Path()
        for path in sorted(root.rglob("*.onnx")) if root.name else []:
            name = path.stem if path.stem != "model" else path.parent.name
            if package != "onnx" or name.startswith("light_") or "BatchNorm" in name:
                yield Entry(f"{package} {name}", lambda path=path: path, None)


def _of(module: str, name: str, *args: Any, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(importlib.import_module(module), name)(*args, **more)


def without_extensions() -> None:
    """Let torchvision and torchaudio be imported although their compiled parts do not fit the installed torch."""
    import torch

    real: Any = torch.library.register_fake

    def register_fake(op: Any, *args: Any, **more: Any) -> Any:
        def decorate(function: Any) -> Any:
            try:
                return real(op, *args, **more)(function)
            except RuntimeError:  # an operation that the compiled part would have defined
                return function

        return decorate

    torch.library.register_fake = register_fake
    for name in ("torchaudio", "torchaudio.transforms", "torchaudio.functional"):
        module = MagicMock(__version__="0", __spec__=types.SimpleNamespace(name=name, origin=None))
        sys.modules[name] = module

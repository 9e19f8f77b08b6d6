"""Initial weights: names of other libraries, grey stems, positions of another size, and no code that runs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import BertConfig

from medsd.errors import DependencyError, SettingsError
from medsd.networks.image import IMAGENET_DEVIATION, IMAGENET_MEAN, ImageEncoder, image_encoder
from medsd.networks.note import note_encoder
from medsd.networks.weights import load_initial_weights, read_weights
from medsd.settings import ImageSettings, NoteSettings

SIZE = 64
Tensors = dict[str, Tensor]


def _encoder(backbone: str, seed: int, size: int = SIZE) -> ImageEncoder:
    torch.manual_seed(seed)
    encoder = image_encoder(ImageSettings(backbone=backbone), size).eval()
    for name, value in encoder.named_buffers():  # statistics as after training
        if name.endswith(("running_mean", "running_var")):
            value.add_(torch.rand_like(value))
    return encoder


def _load(encoder: ImageEncoder, backbone: str, weights: str) -> None:
    load_initial_weights(encoder, backbone, weights, IMAGENET_MEAN, IMAGENET_DEVIATION)


def _torchvision_densenet(tensors: Tensors) -> Tensors:
    plain = {n.replace("body.0.", "features.").replace(".layers.", "."): v for n, v in tensors.items()}
    return plain | {"classifier.weight": torch.rand(18, 9), "classifier.bias": torch.rand(18)}


def _torchvision_resnet(tensors: Tensors) -> Tensors:
    parts = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    renamed = {re.sub(r"body\.stages\.(\d)", lambda m: parts[m[1]], name): value for name, value in tensors.items()}
    kept = {name: value for name, value in renamed.items() if not name.endswith("downsample.0.bias")}
    return {f"module.{name}": value for name, value in kept.items()} | {"module.fc.weight": torch.rand(4, 512)}


def _numbered_resnet(tensors: Tensors) -> Tensors:
    return {name.replace("body.stages.", "backbone."): value for name, value in tensors.items()}


def _timm_vit(tensors: Tensors) -> Tensors:
    changes = (
        ("body.vit.", ""),
        ("patch_embedding.patch_embeddings", "patch_embed.proj"),
        ("patch_embedding.position_embeddings", "pos_embed"),
        ("attn.out_proj", "attn.proj"),
        ("mlp.linear", "mlp.fc"),
    )
    renamed = {}
    for name, value in tensors.items():
        for old, new in changes:
            name = name.replace(old, new)
        renamed[name] = value
    extra = torch.cat([torch.full((1, 1, 192), 9.0), renamed["pos_embed"]], dim=1)
    return renamed | {"pos_embed": extra, "cls_token": torch.rand(1, 1, 192), "head.weight": torch.rand(4, 192)}


def _transformers_vit(tensors: Tensors) -> Tensors:
    renamed = {"vit.embeddings.cls_token": torch.rand(1, 1, 192), "classifier.weight": torch.rand(4, 192)}
    changes = (
        ("body.vit.", "vit."),
        ("vit.patch_embedding.patch_embeddings", "vit.embeddings.patch_embeddings.projection"),
        ("vit.patch_embedding.position_embeddings", "vit.embeddings.position_embeddings"),
        ("vit.blocks.", "vit.encoder.layer."),
        (".attn.out_proj", ".attention.output.dense"),
        (".mlp.linear1", ".intermediate.dense"),
        (".mlp.linear2", ".output.dense"),
        (".norm1", ".layernorm_before"),
        (".norm2", ".layernorm_after"),
        ("vit.norm.", "vit.layernorm."),
    )
    for name, value in tensors.items():
        for old, new in changes:
            name = name.replace(old, new)
        if ".attn.qkv." in name:
            for part, tensor in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = tensor
        else:
            renamed[name] = value
    return renamed


def _numbered_efficientnet(tensors: Tensors) -> Tensors:
    places = sorted(
        {tuple(map(int, m.groups())) for m in map(re.compile(r"_blocks\.(\d+)\.(\d+)").search, tensors) if m}
    )
    renamed = {}
    for name, value in tensors.items():
        if m := re.search(r"_blocks\.(\d+)\.(\d+)", name):
            name = name.replace(m[0], f"_blocks.{places.index((int(m[1]), int(m[2])))}")
        renamed[name.removeprefix("body.")] = value
    return renamed | {"_fc.weight": torch.rand(10, 1280)}


def _renamed(name: str, first: dict[str, str], others: dict[str, str], pattern: str) -> str:
    m = re.match(r"_blocks\.(\d+)\.(\d+)\.(\w+?)\.", name)
    assert m is not None
    table = first if m[1] == "0" else others
    return pattern.format(stage=int(m[1]), repeat=m[2], part=table[m[3]]) + "." + name[m.end() :]


def _timm_efficientnet(tensors: Tensors) -> Tensors:
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    se = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    first = se | {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    others = se | {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    others |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    renamed = {}
    for name, value in tensors.items():
        name = name.removeprefix("body.")
        part, dot, rest = name.partition(".")
        inside = name.startswith("_blocks.")
        new = _renamed(name, first, others, "blocks.{stage}.{repeat}.{part}") if inside else outer[part] + dot + rest
        renamed[new] = value
    return renamed | {"classifier.weight": torch.rand(4, 4)}


def _torchvision_efficientnet(tensors: Tensors) -> Tensors:
    outer = {"_conv_stem": "0.0", "_bn0": "0.1", "_conv_head": "8.0", "_bn1": "8.1"}
    order = ("_expand_conv _bn0", "_depthwise_conv _bn1", "_se_reduce _se_expand", "_project_conv _bn2")
    tables = []
    for parts in (order[1:], order):
        table = {n: f"{i}.{j}" for i, pair in enumerate(parts) for j, n in enumerate(pair.split())}
        place = next(i for i, pair in enumerate(parts) if "_se_" in pair)
        tables.append(table | {"_se_reduce": f"{place}.fc1", "_se_expand": f"{place}.fc2"})
    renamed = {}
    for name, value in tensors.items():
        name = name.removeprefix("body.")
        part, dot, rest = name.partition(".")
        if name.startswith("_blocks."):
            new = _renamed(name, *tables, "{stage}.{repeat}.block.{part}")
            new = f"{int(new.partition('.')[0]) + 1}.{new.partition('.')[2]}"
        else:
            new = outer[part] + dot + rest
        renamed[f"features.{new}"] = value
    return renamed | {"classifier.1.weight": torch.rand(4, 4)}


def _in_a_bundle(tensors: Tensors) -> Tensors:
    return {f"image.{name}": value for name, value in tensors.items()} | {"classifier.weight": torch.rand(3, 3)}


@pytest.mark.parametrize(
    ("backbone", "rename"),
    [
        ("densenet121", _torchvision_densenet),
        ("densenet-small", _in_a_bundle),
        ("resnet18", _torchvision_resnet),
        ("resnet18", _numbered_resnet),
        ("efficientnet-b1", _numbered_efficientnet),
        ("efficientnet-b0", _timm_efficientnet),
        ("efficientnet-lite0", _timm_efficientnet),
        ("efficientnet-b2", _torchvision_efficientnet),
        ("vit-tiny", _timm_vit),
        ("vit-tiny", _transformers_vit),
    ],
)
def test_the_names_of_other_libraries_are_understood(
    backbone: str, rename: Callable[[Tensors], Tensors], tmp_path: Path
) -> None:
    source, target = _encoder(backbone, 1), _encoder(backbone, 2)
    tensors = {n: torch.zeros_like(v) if n.endswith("downsample.0.bias") else v for n, v in source.state_dict().items()}
    source.load_state_dict(tensors)
    torch.save({"epoch": 3, "state_dict": rename(tensors)}, tmp_path / "weights.pth")
    _load(target, backbone, str(tmp_path / "weights.pth"))
    pixels = torch.rand(1, 1, SIZE, SIZE)
    with torch.inference_mode():
        torch.testing.assert_close(target(pixels), source(pixels))


def test_a_stem_of_three_channels_is_summed_to_one(tmp_path: Path) -> None:
    target = _encoder("resnet18", 0)
    tensors = {name: value.contiguous() for name, value in target.state_dict().items()}
    tensors["body.stages.0.weight"] = torch.rand(64, 3, 7, 7)
    save_file(tensors, tmp_path / "weights.safetensors")
    _load(target, "resnet18", str(tmp_path / "weights.safetensors"))
    expected = tensors["body.stages.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(target.state_dict()["body.stages.0.weight"], expected)


def test_the_positions_of_a_vit_of_another_size_are_interpolated(tmp_path: Path) -> None:
    source, target, key = _encoder("vit-tiny", 1, 64), _encoder("vit-tiny", 2, 128), ""
    key = next(name for name in source.state_dict() if name.endswith("position_embeddings"))
    tensors = {name: value.contiguous() for name, value in source.state_dict().items()}
    ramp = torch.arange(4.0).repeat_interleave(4)[None, :, None].expand(1, 16, 192)  # rises from row to row
    save_file(tensors | {key: ramp.contiguous()}, tmp_path / "weights.safetensors")
    _load(target, "vit-tiny", str(tmp_path / "weights.safetensors"))
    found = target.state_dict()[key].reshape(8, 8, 192)
    assert (found.diff(dim=0)[1:-1] > 0.2).all()
    torch.testing.assert_close(found[:, :1].expand_as(found), found)
    torch.testing.assert_close(found.mean(), torch.tensor(1.5), atol=0.01, rtol=0)


def test_a_densenet_of_torchxrayvision_reads_the_same_image_the_same(tmp_path: Path) -> None:
    source, target = _encoder("densenet121", 1, 96), _encoder("densenet121", 2, 96)
    tensors = _torchvision_densenet(source.state_dict())
    # As trained on -1024…1024: a kernel that is small, statistics that are of that range.
    tensors["features.conv0.weight"] = tensors["features.conv0.weight"] / 500
    torch.save(tensors | {"op_threshs": torch.rand(18)}, tmp_path / "xrv.pt")
    _load(target, "densenet121", f"xrv:{tmp_path / 'xrv.pt'}")
    pixels, stem = torch.rand(1, 1, 96, 96), [tensors[f"features.{n}"] for n in ("conv0.weight", "norm0.running_mean")]
    theirs = nn.functional.conv2d(2048 * pixels - 1024, stem[0], stride=2, padding=3) - stem[1][None, :, None, None]
    net = target.body[0]
    ours = net.conv0((pixels - IMAGENET_MEAN) / IMAGENET_DEVIATION) - net.norm0.running_mean[None, :, None, None]
    torch.testing.assert_close(ours[..., 2:-2, 2:-2], theirs[..., 2:-2, 2:-2], atol=1e-3, rtol=1e-3)


def test_a_pickled_module_is_not_loaded_and_the_way_out_is_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(SettingsError, match=r"whole\.pt: holds a pickled object.*torch\.save\(model\.state_dict\(\)"):
        read_weights(tmp_path / "whole.pt")


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def test_code_in_a_file_of_weights_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"x": torch.rand(1)}, "more": _Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    with pytest.raises(SettingsError, match="pickled object"):
        read_weights(tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


def test_code_in_the_weights_of_a_note_model_does_not_run(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config.save_pretrained(tmp_path)
    torch.save({"x": torch.rand(1), "more": _Trap(tmp_path / "sprung")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SettingsError, match=r"network\.note\.model: .*transformers cannot read it"):
        note_encoder(NoteSettings(model=tmp_path), Tokenizer(models.BPE()))
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_no_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    for name, content in (("a.pt", b"no"), ("b.safetensors", b"\x00" * 99), ("c.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SettingsError) as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value)
    torch.save({"epoch": 3}, tmp_path / "d.pt")
    with pytest.raises(SettingsError, match="holds no state dict"):
        read_weights(tmp_path / "d.pt")


def test_a_mismatch_lists_the_tensors_with_their_shapes(tmp_path: Path) -> None:
    tensors = {name: value.contiguous() for name, value in _encoder("resnet18", 0).state_dict().items()}
    del tensors["body.stages.5.0.conv2.weight"]
    tensors["body.stages.6.1.bn1.bias"] = torch.rand(7)
    tensors["body.stages.9.weight"] = torch.rand(2)
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(SettingsError) as caught:
        _load(_encoder("resnet18", 0), "resnet18", str(tmp_path / "weights.safetensors"))
    told = "missing: body.stages.5.0.conv2.weight; not known: body.stages.9.weight; of another shape: "
    assert str(caught.value).endswith(told + "body.stages.6.1.bn1.bias (7,) for (256,)")


def test_xrv_is_for_the_densenet_that_it_comes_from(tmp_path: Path) -> None:
    torch.save(_encoder("resnet18", 0).state_dict(), tmp_path / "xrv.pt")
    with pytest.raises(SettingsError, match="is for densenet121, not resnet18"):
        _load(_encoder("resnet18", 0), "resnet18", f"xrv:{tmp_path / 'xrv.pt'}")


def test_a_hub_that_is_not_there_is_said_in_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the app sets it before it imports Gradio
    started = time.monotonic()
    with pytest.raises(DependencyError, match=r"^hub:nobody/nothing: is not in the local cache.*does not answer"):
        _load(_encoder("resnet18", 0), "resnet18", "hub:nobody/nothing")
    assert time.monotonic() - started < 15
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DependencyError, match="HF_HUB_OFFLINE is set"):
        _load(_encoder("resnet18", 0), "resnet18", "hub:nobody/nothing")
    with pytest.raises(SettingsError, match="write it as hub:owner/name"):
        _load(_encoder("resnet18", 0), "resnet18", "hub:nothing")


def test_a_cached_hub_file_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    source, commit = _encoder("densenet-small", 1), "0" * 40
    place = tmp_path / "models--lab--net"
    (place / "snapshots" / commit).mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit, encoding="utf-8")
    tensors = {name: value.contiguous() for name, value in source.state_dict().items()}
    save_file(tensors, place / "snapshots" / commit / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    target = _encoder("densenet-small", 2)
    _load(target, "densenet-small", "hub:lab/net")
    torch.testing.assert_close(target.state_dict(), source.state_dict())


def test_what_monai_downloads_of_torchvision_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = _encoder("densenet121", 1), _encoder("densenet121", 2)
    plain = _torchvision_densenet(source.state_dict())
    plain = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): v for name, v in plain.items()}
    plain["features.conv0.weight"] = torch.rand(64, 3, 7, 7)
    monkeypatch.setattr("monai.networks.nets.densenet.load_state_dict_from_url", lambda *_, **__: dict(plain))
    _load(target, "densenet121", "imagenet")
    found, expected = target.state_dict(), source.state_dict()
    torch.testing.assert_close(found["body.0.conv0.weight"], plain["features.conv0.weight"].sum(1, keepdim=True))
    same = [n for n in expected if n != "body.0.conv0.weight" and not n.endswith("num_batches_tracked")]
    assert all(torch.equal(found[name], expected[name]) for name in same)


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("monai.networks.nets.densenet.load_state_dict_from_url", unreachable)
    with pytest.raises(DependencyError, match=r"densenet121 cannot be downloaded \(URLError\); give a local file"):
        _load(_encoder("densenet121", 0), "densenet121", "imagenet")

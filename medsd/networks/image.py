"""Image encoders: MONAI networks that turn a radiograph into a map of features.

Each takes pixels in 0…1 with one channel and returns the last map before pooling, so that a linear layer behind it
gives class activation maps that add up to the logit exactly.
"""

from collections import OrderedDict

from monai.networks.nets import DenseNet, EfficientNet, ViT, resnet18, resnet50
from monai.networks.nets.efficientnet import efficientnet_params
from torch import Tensor, nn

from medsd.networks.freezing import Blocks, FreezableEncoder
from medsd.networks.weights import load_initial_weights
from medsd.settings import ImageSettings

# Mean and deviation over ImageNet's three channels, as one: what the ImageNet weights expect of a grey image.
IMAGENET_MEAN, IMAGENET_DEVIATION = 0.449, 0.226
# EfficientNet-B0's blocks (Tan and Le, ICML 2019); the lite family leaves squeeze-excitation out.
_LITE0_BLOCKS = [
    "r1_k3_s11_e1_i32_o16",
    "r2_k3_s22_e6_i16_o24",
    "r2_k5_s22_e6_i24_o40",
    "r3_k3_s22_e6_i40_o80",
    "r3_k5_s11_e6_i80_o112",
    "r4_k5_s22_e6_i112_o192",
    "r1_k3_s11_e6_i192_o320",
]
_DENSENETS = {  # growth, layers of each block, features of the stem (Huang et al., CVPR 2017)
    "densenet121": (32, (6, 12, 24, 16), 64),
    "densenet169": (32, (6, 12, 32, 32), 64),
    "densenet-small": (12, (2, 4, 6, 4), 24),
}
_RESNETS = {"resnet18": (resnet18, 512), "resnet50": (resnet50, 2048)}
_VITS = {"vit-tiny": (192, 3), "vit-small": (384, 6), "vit-base": (768, 12)}  # width, heads (Touvron et al., ICML 2021)
VIT_PATCH, _VIT_LAYERS = 16, 12


class ImageEncoder(FreezableEncoder):
    """Normalise the pixels, run a backbone: `body` maps (B, 1, S, S) to (B, width, S/32, S/32), a ViT to S/16."""

    def __init__(self, body: nn.Module, width: int, blocks: Blocks) -> None:
        super().__init__(blocks)
        self.body = body
        self.width = width

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 1, S, S) in 0…1 → (B, width, S/32, S/32), or S/16 for a ViT."""
        return self.body((pixels - IMAGENET_MEAN) / IMAGENET_DEVIATION)


def _fold_padding(net: nn.Module) -> None:
    """Let convolutions pad by themselves where both sides get the same: equal values, a tenth less time a step."""
    for module in net.modules():
        for name, padding in list(module.named_children()):
            if isinstance(padding, nn.ConstantPad2d) and len(set(padding.padding)) == 1:
                getattr(module, name.removesuffix("_padding")).padding = padding.padding[:2]
                setattr(module, name, nn.Identity())


class _EfficientNetMap(EfficientNet):
    """MONAI's EfficientNet up to its last map; `lite` has no squeeze-excitation, and ReLU6, which quantises well."""

    def __init__(self, name: str, size: int, drop_connect: float) -> None:
        lite = name.endswith("lite0")
        wide, deep = (1.0, 1.0) if lite else efficientnet_params[name][:2]
        super().__init__(
            [block if lite else f"{block}_se0.25" for block in _LITE0_BLOCKS],
            spatial_dims=2,
            in_channels=1,
            num_classes=1,
            width_coefficient=wide,
            depth_coefficient=deep,
            image_size=size,
            drop_connect_rate=drop_connect,
        )
        self.width: int = self._conv_head.out_channels
        if lite:
            for module in self.modules():
                if hasattr(module, "_swish"):
                    module._swish = nn.ReLU6(inplace=True)
        else:
            self.set_swish(memory_efficient=False)  # its own backward function cannot be exported
        self._fc = nn.Identity()
        _fold_padding(self)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self._swish(self._bn0(self._conv_stem(self._conv_stem_padding(inputs))))
        x = self._blocks(x)
        return self._swish(self._bn1(self._conv_head(self._conv_head_padding(x))))


class _ViTMap(nn.Module):
    """MONAI's ViT (Dosovitskiy et al., ICLR 2021) without a class token (Beyer et al. 2022): its patches as a map."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        self.width, heads = _VITS[name]
        self.side = size // VIT_PATCH
        self.vit = ViT(
            in_channels=1,
            img_size=size,
            patch_size=VIT_PATCH,
            hidden_size=self.width,
            mlp_dim=4 * self.width,
            num_layers=_VIT_LAYERS,
            num_heads=heads,
            spatial_dims=2,
            qkv_bias=True,
        )

    def forward(self, inputs: Tensor) -> Tensor:
        tokens, _ = self.vit(inputs)  # (B, side², width)
        return tokens.transpose(1, 2).unflatten(2, (self.side, self.side))


def _efficient_net(name: str, size: int, drop_connect: float) -> ImageEncoder:
    net = _EfficientNetMap(name, size, drop_connect)
    stem, head = [net._conv_stem, net._bn0], [net._conv_head, net._bn1]
    return ImageEncoder(net, net.width, [stem, *([stage] for stage in net._blocks.children()), head])


def _res_net(name: str) -> ImageEncoder:
    build, width = _RESNETS[name]
    # MONAI's own default, conv1_t_stride=1, is four times slower.
    net = build(spatial_dims=2, n_input_channels=1, conv1_t_stride=2, feed_forward=False)
    stem, layers = [net.conv1, net.bn1, net.act, net.maxpool], [net.layer1, net.layer2, net.layer3, net.layer4]
    body = nn.Sequential(OrderedDict(stages=nn.Sequential(*stem, *layers)))  # the name that weights are known by
    return ImageEncoder(body, width, [stem, *([layer] for layer in layers)])


def _dense_net(name: str) -> ImageEncoder:
    growth, layers, start = _DENSENETS[name]
    net = DenseNet(2, 1, 1, init_features=start, growth_rate=growth, block_config=layers)
    parts = dict(net.features.named_children())
    blocks = [[module for part, module in parts.items() if not part.startswith(("denseblock", "transition", "norm5"))]]
    for number in range(1, len(layers) + 1):
        behind = "norm5" if number == len(layers) else f"transition{number}"
        blocks.append([parts[f"denseblock{number}"], parts[behind]])
    width = net.class_layers.out.in_features
    return ImageEncoder(nn.Sequential(net.features, nn.ReLU(inplace=True)), width, blocks)


def _vision_transformer(name: str, size: int) -> ImageEncoder:
    net = _ViTMap(name, size)
    layers = list(net.vit.blocks.children())
    last = [layers.pop(), net.vit.norm]
    return ImageEncoder(net, net.width, [[net.vit.patch_embedding], *([layer] for layer in layers), last])


def image_encoder(settings: ImageSettings, size: int) -> ImageEncoder:
    """Build the encoder that the settings name and load its initial weights.

    `size` is the side of the input in pixels, a multiple of 32; EfficientNet's padding and a ViT's positions depend on
    it.

    Raises:
        SettingsError: weights that are not there or do not fit; the message lists the tensors.
        DependencyError: the package with the weights is not installed, or the hub cannot be reached.
    """
    name = settings.backbone
    if name.startswith("efficientnet"):
        encoder = _efficient_net(name, size, settings.dropout)
    elif name.startswith("densenet"):
        encoder = _dense_net(name)
    elif name.startswith("resnet"):
        encoder = _res_net(name)
    else:
        encoder = _vision_transformer(name, size)
    load_initial_weights(encoder, name, str(settings.weights), IMAGENET_MEAN, IMAGENET_DEVIATION)
    return encoder

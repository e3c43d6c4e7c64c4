"""The same networks in PyTorch, with our weights, for `step`; nothing else needs PyTorch."""

import itertools
import re
from typing import Any

import jax
import numpy as np
import torch
from flax import traverse_util
from torch import nn
from torch.nn import functional

from spectral_jax.models.pretrained import TORCH_NAMES
from spectral_jax.models.transunet import VARIANTS


def double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    """Twice: convolution, batch normalisation, ReLU."""
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1, bias=False))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """`spectral_jax.models.UNet` with batch normalisation."""

    def __init__(self, widths, classes: int):
        super().__init__()
        self.encoder = nn.ModuleList(
            double_convolution(before, width)
            for before, width in zip((1, *widths[:-1]), widths, strict=True)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, width, 2, stride=2)
            for width, below in itertools.pairwise(widths)
        )
        self.decoder = nn.ModuleList(double_convolution(2 * width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x):
        """Features of the next layer."""
        skips = []
        for block in self.encoder[:-1]:
            x = block(x)
            skips.append(x)
            x = functional.max_pool2d(x, 2)
        x = self.encoder[-1](x)
        for level in reversed(range(len(skips))):
            x = self.decoder[level](torch.cat([skips[level], self.up[level](x)], 1))
        return self.head(x)

    def load(self, variables) -> None:
        """Takes the weights of our network."""
        params, stats = variables["params"], variables["batch_stats"]
        named = [(f"encoder{i}", block) for i, block in enumerate(self.encoder[:-1])]
        named += [("bottleneck", self.encoder[-1])]
        named += [(f"decoder{i}", block) for i, block in enumerate(self.decoder)]
        for name, block in named:
            for i in range(2):
                norm = params[name][f"BatchNorm_{i}"]
                copy(
                    block[3 * i].weight,
                    np.transpose(params[name][f"Conv_{i}"]["kernel"], (3, 2, 0, 1)),
                )
                copy(block[3 * i + 1].weight, norm["scale"])
                copy(block[3 * i + 1].bias, norm["bias"])
                copy(block[3 * i + 1].running_mean, stats[name][f"BatchNorm_{i}"]["mean"])
                copy(block[3 * i + 1].running_var, stats[name][f"BatchNorm_{i}"]["var"])
        for i, up in enumerate(self.up):
            kernel = np.asarray(params[f"up{i}"]["Dense_0"]["kernel"])
            copy(up.weight, kernel.reshape(len(kernel), 2, 2, -1).transpose(0, 3, 1, 2))
            copy(up.bias, params[f"up{i}"]["bias"])
        copy(self.head.weight, np.asarray(params["head"]["kernel"]).T[..., None, None])
        copy(self.head.bias, params["head"]["bias"])


class StdConv2d(nn.Conv2d):
    """Convolution with a standardised kernel."""

    def forward(self, x):
        """Features of the next layer."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, unbiased=False)
        kernel = (self.weight - mean) / torch.sqrt(variance + 1e-5)
        return functional.conv2d(x, kernel, None, self.stride, self.padding)


class Bottleneck(nn.Module):
    """A residual unit of the ResNet."""

    def __init__(self, inputs: int, features: int, stride: int):
        super().__init__()
        width = features // 4
        self.conv1, self.gn1 = (
            StdConv2d(inputs, width, 1, bias=False),
            nn.GroupNorm(32, width, 1e-6),
        )
        self.conv2 = StdConv2d(width, width, 3, stride, 1, bias=False)
        self.gn2 = nn.GroupNorm(32, width, 1e-6)
        self.conv3, self.gn3 = (
            StdConv2d(width, features, 1, bias=False),
            nn.GroupNorm(32, features, 1e-6),
        )
        if stride != 1 or inputs != features:
            self.downsample = StdConv2d(inputs, features, 1, stride, bias=False)
            self.gn_proj = nn.GroupNorm(features, features)

    def forward(self, x):
        """Features of the next layer."""
        shortcut = self.gn_proj(self.downsample(x)) if hasattr(self, "downsample") else x
        x = functional.relu(self.gn1(self.conv1(x)))
        x = functional.relu(self.gn2(self.conv2(x)))
        return functional.relu(shortcut + self.gn3(self.conv3(x)))


class EncoderLayer(nn.Module):
    """Attention and two dense layers."""

    def __init__(self, hidden: int, heads: int, mlp: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.ffn_norm = nn.LayerNorm(hidden, 1e-6), nn.LayerNorm(hidden, 1e-6)
        self.attn = nn.ModuleDict(
            {k: nn.Linear(hidden, hidden) for k in ("query", "key", "value", "out")}
        )
        self.ffn = nn.ModuleDict({"fc1": nn.Linear(hidden, mlp), "fc2": nn.Linear(mlp, hidden)})
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        """Features of the next layer."""
        y = self.attention_norm(x)
        query, key, value = (
            self.attn[k](y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for k in ("query", "key", "value")
        )
        y = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + self.attn["out"](y)
        y = self.dropout(functional.gelu(self.ffn["fc1"](self.ffn_norm(x))))
        return x + self.dropout(self.ffn["fc2"](y))


class DecoderBlock(nn.Module):
    """Up-sampling, concatenation, two convolutions."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1, self.conv2 = (convolution(i, outputs) for i in (inputs, outputs))

    def forward(self, x, skip):
        """Features of the next layer."""
        x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.conv2(self.conv1(x if skip is None else torch.cat([x, skip], 1)))


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    layers = (
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )
    return nn.Sequential(*layers)


class TransUNet(nn.Module):
    """TransUNet with ResNet-50 and ViT-B; the names of its parameters are the reference's."""

    def __init__(self, size: int, classes: int):
        super().__init__()
        v: Any = VARIANTS["r50_vit_b16"]
        hidden = v["hidden_size"]
        stages, inputs = [], 64
        for stage, units in enumerate(v["resnet_blocks"]):
            features = 256 * 2**stage
            blocks = {}
            for unit in range(units):
                stride = 2 if stage and not unit else 1
                blocks[f"unit{unit + 1}"] = Bottleneck(inputs, features, stride)
                inputs = features
            stages.append(nn.ModuleDict(blocks))
        root = {"conv": StdConv2d(3, 64, 7, 2, 3, bias=False), "gn": nn.GroupNorm(32, 64, 1e-6)}
        hybrid = {
            "root": nn.ModuleDict(root),
            "body": nn.ModuleDict({f"block{i + 1}": stage for i, stage in enumerate(stages)}),
        }
        embeddings = nn.Module()
        embeddings.hybrid_model = nn.ModuleDict(hybrid)
        embeddings.patch_embeddings = nn.Conv2d(1024, hidden, 1)
        embeddings.position_embeddings = nn.Parameter(torch.zeros(1, (size // 16) ** 2, hidden))
        encoder = nn.Module()
        encoder.layer = nn.ModuleList(
            EncoderLayer(hidden, v["num_heads"], v["mlp_dim"]) for _ in range(v["num_layers"])
        )
        encoder.encoder_norm = nn.LayerNorm(hidden, 1e-6)
        self.transformer = nn.ModuleDict({"embeddings": embeddings, "encoder": encoder})
        widths = [(512 + 512, 256), (256 + 256, 128), (128 + 64, 64), (64, 16)]
        decoder = {
            "conv_more": convolution(hidden, 512),
            "blocks": nn.ModuleList(DecoderBlock(*pair) for pair in widths),
        }
        self.decoder = nn.ModuleDict(decoder)
        self.segmentation_head = nn.Sequential(nn.Conv2d(16, classes, 3, padding=1))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        """Features of the next layer."""
        embeddings, encoder = self.transformer["embeddings"], self.transformer["encoder"]
        size = x.shape[-1]
        root = embeddings.hybrid_model["root"]
        x = functional.relu(root["gn"](root["conv"](x.expand(-1, 3, -1, -1))))
        features = [x]
        x = functional.max_pool2d(x, 3, 2)
        for i, stage in enumerate(embeddings.hybrid_model["body"].values()):
            for unit in stage.values():
                x = unit(x)
            short = size // (4 * 2**i) - x.shape[-1]
            features.append(functional.pad(x, (0, short, 0, short)))
        x = embeddings.patch_embeddings(x)
        side = x.shape[-1]
        x = self.dropout(x.flatten(2).transpose(1, 2) + embeddings.position_embeddings)
        for layer in encoder.layer:
            x = layer(x)
        x = encoder.encoder_norm(x).transpose(1, 2).unflatten(2, (side, side))
        x = self.decoder["conv_more"](x)
        skips = [*features[-2::-1], None]
        for block, skip in zip(self.decoder["blocks"], skips, strict=True):
            x = block(x, skip)
        return self.segmentation_head(x)

    def load(self, variables) -> None:
        """Takes the weights of our network, by the names of the reference's checkpoints."""
        own = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        for path, array in traverse_util.flatten_dict(variables, sep="/").items():
            name = path.split("/", 1)[1]
            for pattern, replacement in TORCH_NAMES:
                name = re.sub(pattern, replacement, name)
            array, shape = np.asarray(array), own[name].shape
            if path.endswith("kernel"):
                if array.ndim == 4:
                    array = array.transpose(3, 2, 0, 1)
                else:
                    array = array.reshape(shape[1], shape[0]).T
            copy(own[name], array.reshape(shape))


def copy(parameter: torch.Tensor, array: Any) -> None:
    values = torch.from_numpy(np.array(array, np.float32))
    if values.shape != parameter.shape:
        raise ValueError(f"an array of shape {tuple(values.shape)} for {tuple(parameter.shape)}")
    parameter.data.copy_(values)


class Twin:
    """The network of a `step.Case` with the weights of `step.Ours`, and the same training step."""

    def __init__(self, case, ours, *, compiled: bool):
        torch.manual_seed(0)
        widths = case.options.get("widths")
        network = (
            UNet(widths, case.classes)
            if case.model == "unet"
            else TransUNet(case.size, case.classes)
        )
        network.load(jax.device_get(ours.state.variables))
        network = network.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4
        )
        self.network = network
        self.call = torch.compile(network) if compiled else network
        images = torch.from_numpy(ours.images).permute(0, 3, 1, 2)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.from_numpy(ours.labels.astype(np.int64))
        self.classes = case.classes

    def loss(self, logits):
        """Mean of cross-entropy and Dice, squared denominator, pooled: our `dice_ce`."""
        targets = functional.one_hot(self.labels, self.classes).permute(0, 3, 1, 2).float()
        p = logits.softmax(1)
        axes = (0, 2, 3)
        dice = (2 * (p * targets).sum(axes) + 1e-5) / ((p * p + targets * targets).sum(axes) + 1e-5)
        return 0.5 * functional.cross_entropy(logits, self.labels) + 0.5 * (1 - dice).mean()

    def train(self) -> float:
        """One step; returns its loss."""
        self.network.train()
        loss = self.loss(self.call(self.images))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def predict(self) -> np.ndarray:
        """Logits of the batch, channels last."""
        self.network.eval()
        with torch.inference_mode():
            return self.call(self.images).permute(0, 2, 3, 1).numpy()

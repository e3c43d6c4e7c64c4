"""Weights of others: names, shapes and order of axes, and files that must not load."""

import collections
import functools
import json
import os
import pickle
import sys
import types
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from conftest import SHARED

from spectral_jax.models import (
    build_model,
    load_imagenet21k,
    load_pretrained,
    load_transunet_torch,
)
from spectral_jax.models.pretrained import read_torch

TINY = {
    "num_classes": 3,
    "image_size": 64,
    "resnet_blocks": (1, 2, 1),
    "resnet_width": 8,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_dim": 24,
    "decoder_widths": (9, 8, 7, 6, 5),
}
REFERENCE = {
    "num_classes": 9,
    "image_size": 224,
    "resnet_blocks": (3, 4, 9),
    "resnet_width": 64,
    "hidden_size": 768,
    "num_layers": 12,
    "num_heads": 12,
    "mlp_dim": 3072,
    "decoder_widths": (512, 256, 128, 64, 16),
}


@functools.cache
def variables(**options):
    """Arrays of ones in the shapes of the tiny model's variables."""
    model = build_model("transunet", **TINY | options)
    images = jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def units(o):
    """Block, unit, channels in and out of every bottleneck."""
    channels = o["resnet_width"]
    for block, count in enumerate(o["resnet_blocks"], 1):
        for unit in range(1, count + 1):
            features = o["resnet_width"] * 2 ** (block + 1)
            yield block, unit, channels, features
            channels = features


def torch_shapes(o):
    """The names and shapes of the reference's state dict, written down from its source."""
    shapes, hidden = {}, o["hidden_size"]

    def norm(name, channels, leaves=("weight", "bias")):
        shapes.update({f"{name}.{leaf}": [channels] for leaf in leaves})

    def dense(name, inputs, outputs):
        shapes.update({f"{name}.weight": [outputs, inputs], f"{name}.bias": [outputs]})

    root = "transformer.embeddings"
    shapes[f"{root}.position_embeddings"] = [1, (o["image_size"] // 16) ** 2, hidden]
    shapes[f"{root}.patch_embeddings.weight"] = [hidden, 16 * o["resnet_width"], 1, 1]
    shapes[f"{root}.patch_embeddings.bias"] = [hidden]
    shapes[f"{root}.hybrid_model.root.conv.weight"] = [o["resnet_width"], 3, 7, 7]
    norm(f"{root}.hybrid_model.root.gn", o["resnet_width"])
    for block, unit, channels, features in units(o):
        name = f"{root}.hybrid_model.body.block{block}.unit{unit}"
        width = features // 4
        for i, (inputs, outputs, size) in enumerate(
            [(channels, width, 1), (width, width, 3), (width, features, 1)], 1
        ):
            shapes[f"{name}.conv{i}.weight"] = [outputs, inputs, size, size]
            norm(f"{name}.gn{i}", outputs)
        if unit == 1:
            shapes[f"{name}.downsample.weight"] = [features, channels, 1, 1]
            norm(f"{name}.gn_proj", features)
    for layer in range(o["num_layers"]):
        name = f"transformer.encoder.layer.{layer}"
        norm(f"{name}.attention_norm", hidden)
        norm(f"{name}.ffn_norm", hidden)
        for part in ("query", "key", "value", "out"):
            dense(f"{name}.attn.{part}", hidden, hidden)
        dense(f"{name}.ffn.fc1", hidden, o["mlp_dim"])
        dense(f"{name}.ffn.fc2", o["mlp_dim"], hidden)
    norm("transformer.encoder.encoder_norm", hidden)

    def convolution(name, inputs, outputs):
        shapes[f"{name}.0.weight"] = [outputs, inputs, 3, 3]
        norm(f"{name}.1", outputs, ("weight", "bias", "running_mean", "running_var"))

    skips = [8 * o["resnet_width"], 4 * o["resnet_width"], o["resnet_width"], 0]
    first, *widths = o["decoder_widths"]
    convolution("decoder.conv_more", hidden, first)
    for i, (inputs, skip, width) in enumerate(
        zip([first, *widths[:-1]], skips, widths, strict=True)
    ):
        convolution(f"decoder.blocks.{i}.conv1", inputs + skip, width)
        convolution(f"decoder.blocks.{i}.conv2", width, width)
    shapes["segmentation_head.0.weight"] = [o["num_classes"], widths[-1], 3, 3]
    shapes["segmentation_head.0.bias"] = [o["num_classes"]]
    return shapes


def imagenet21k_shapes(o):
    """The names and shapes of the ImageNet-21k file."""
    hidden, heads = o["hidden_size"], o["num_heads"]
    shapes = {
        "cls": [1, 1, hidden],
        "conv_root/kernel": [7, 7, 3, o["resnet_width"]],
        "embedding/kernel": [1, 1, 16 * o["resnet_width"], hidden],
        "embedding/bias": [hidden],
        "Transformer/posembed_input/pos_embedding": [1, (o["image_size"] // 16) ** 2 + 1, hidden],
    }

    def norm(name, *shape):
        shapes.update({f"{name}/scale": [*shape], f"{name}/bias": [*shape]})

    def dense(name, kernel, bias):
        shapes.update({f"{name}/kernel": kernel, f"{name}/bias": bias})

    norm("gn_root", 1, 1, 1, o["resnet_width"])
    for block, unit, channels, features in units(o):
        name, width = f"block{block}/unit{unit}", features // 4
        for i, (inputs, outputs, size) in enumerate(
            [(channels, width, 1), (width, width, 3), (width, features, 1)], 1
        ):
            shapes[f"{name}/conv{i}/kernel"] = [size, size, inputs, outputs]
            norm(f"{name}/gn{i}", 1, 1, 1, outputs)
        if unit == 1:
            shapes[f"{name}/conv_proj/kernel"] = [1, 1, channels, features]
            norm(f"{name}/gn_proj", 1, 1, 1, features)
    for layer in range(o["num_layers"]):
        name = f"Transformer/encoderblock_{layer}"
        norm(f"{name}/LayerNorm_0", hidden)
        norm(f"{name}/LayerNorm_2", hidden)
        attention, split = f"{name}/MultiHeadDotProductAttention_1", [heads, hidden // heads]
        for part in ("query", "key", "value"):
            dense(f"{attention}/{part}", [hidden, *split], split)
        dense(f"{attention}/out", [*split, hidden], [hidden])
        dense(f"{name}/MlpBlock_3/Dense_0", [hidden, o["mlp_dim"]], [o["mlp_dim"]])
        dense(f"{name}/MlpBlock_3/Dense_1", [o["mlp_dim"], hidden], [hidden])
    norm("Transformer/encoder_norm", hidden)
    return shapes


def draw(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def state_dict():
    return draw(torch_shapes(TINY))


def save_npz(path, arrays):
    with open(path, "wb") as file:  # given a name, numpy appends its own extension
        np.savez(file, **arrays)
    return path


class Storage:
    def __init__(self, key, array):
        self.key, self.array = key, array


class Tensor:
    """Offset, size and stride in a storage, or in another tensor, that need not be true."""

    def __init__(self, storage, offset, size, stride):
        self.arguments = (storage, offset, size, stride, False, collections.OrderedDict())


STORAGES = {"float32": "Float", "float64": "Double", "float16": "Half", "int64": "Long"}


def save_torch(path, content):
    """Writes `content` as `torch.save` does: a pickle of references to raw data, in a zip file."""

    def fake(module, name):
        made = type(name, (), {"__module__": module})
        setattr(sys.modules[module], name, made)
        return made

    storages = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if not isinstance(value, Storage):
                return None
            name = STORAGES.get(value.array.dtype.name, "BFloat16") + "Storage"
            return "storage", fake("torch", name), value.key, "cpu", value.array.size

        def reducer_override(self, value):
            if isinstance(value, Tensor):
                if isinstance(value.arguments[0], Storage) and not storages:
                    storages.append(value.arguments[0])
                return fake("torch._utils", "_rebuild_tensor_v2"), value.arguments
            if not isinstance(value, np.ndarray):
                return NotImplemented
            # a transposed array stays a view of its base, as PyTorch stores it
            base = value if value.base is None else value.base
            storages.append(Storage(str(len(storages)), base))
            stride = tuple(step // value.itemsize for step in value.strides)
            arguments = (storages[-1], 0, value.shape, stride, False, collections.OrderedDict())
            return fake("torch._utils", "_rebuild_tensor_v2"), arguments

    with pytest.MonkeyPatch.context() as patch:
        for module in ("torch", "torch._utils"):
            patch.setitem(sys.modules, module, types.ModuleType(module))
        with zipfile.ZipFile(path, "w") as archive:
            with archive.open("archive/data.pkl", "w") as file:
                Pickler(file, protocol=2).dump(content)
            for storage in storages:
                archive.writestr(f"archive/data/{storage.key}", storage.array.tobytes())
            archive.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize(
    ("layout", "shapes"), [("state_dict", torch_shapes), ("npz", imagenet21k_shapes)]
)
def test_names_and_shapes_are_the_true_files(layout, shapes):
    path = SHARED / "fixtures" / "transunet" / "shapes.json"
    if not path.is_file():
        pytest.skip(f"the true files' shapes are not part of the repository: no file {path}")
    assert shapes(REFERENCE) == json.loads(path.read_text())[layout]


def test_imagenet21k_fills_all_but_the_decoder(tmp_path):
    arrays = draw(imagenet21k_shapes(TINY) | {"pre_logits/kernel": [16, 16], "head/bias": [21843]})
    before = variables()
    after = load_imagenet21k(save_npz(tmp_path / "R50+ViT-B_16.npz", arrays), before)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for name, tree in after["params"].items():
        is_decoder = name in ("bottleneck", "head") or name.startswith("decoder")
        assert is_decoder == all(np.all(leaf == 1) for leaf in leaves(tree)), name
    assert all(np.all(leaf == 1) for leaf in leaves(after["batch_stats"]))

    params = after["params"]
    attention = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    for ours, name in [
        (params["resnet"]["conv_root"]["kernel"], "conv_root/kernel"),
        (params["resnet"]["block2_unit1"]["conv_proj"]["kernel"], "block2/unit1/conv_proj/kernel"),
        (params["encoder"]["layer1"]["attention"]["out"]["kernel"], f"{attention}/out/kernel"),
        (
            params["encoder"]["layer0"]["mlp_norm"]["scale"],
            "Transformer/encoderblock_0/LayerNorm_2/scale",
        ),
    ]:
        np.testing.assert_array_equal(ours, arrays[name])
    np.testing.assert_array_equal(
        params["resnet"]["block2_unit2"]["gn3"]["bias"], arrays["block2/unit2/gn3/bias"].ravel()
    )
    positions = arrays["Transformer/posembed_input/pos_embedding"]
    np.testing.assert_array_equal(params["position_embedding"].reshape(16, 16), positions[0, 1:])


def test_a_transformer_alone_loads_its_own_file(tmp_path):
    shapes = {
        name: shape
        for name, shape in imagenet21k_shapes(TINY).items()
        if name.startswith(("cls", "embedding", "Transformer"))
    }
    arrays = draw(shapes | {"embedding/kernel": [16, 16, 3, 16]})
    path = save_npz(tmp_path / "ViT-B_16.npz", arrays)
    loaded = load_pretrained(path, variables(variant="vit_b16", resnet_blocks=()))
    kernel = loaded["params"]["embedding"]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["embedding/kernel"])


def test_a_state_dict_fills_everything():
    state = state_dict()
    after = load_transunet_torch(state, variables())
    assert not any(np.all(leaf == 1) for leaf in leaves(after))
    after = jax.tree.map(np.asarray, after)
    params, statistics = after["params"], after["batch_stats"]
    root = "transformer.embeddings"
    x = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    attention = params["encoder"]["layer1"]["attention"]
    name = "transformer.encoder.layer.1.attn"
    query = state[f"{name}.query.weight"] @ x + state[f"{name}.query.bias"]
    for ours, expected in [
        (
            params["resnet"]["block1_unit1"]["conv2"]["kernel"][2, 1, 3, 4],
            state[f"{root}.hybrid_model.body.block1.unit1.conv2.weight"][4, 3, 2, 1],
        ),
        (
            np.einsum("i,ihd->hd", x, attention["query"]["kernel"]) + attention["query"]["bias"],
            query.reshape(2, 8),
        ),
        (
            np.einsum("hd,hdo->o", query.reshape(2, 8), attention["out"]["kernel"]),
            state[f"{name}.out.weight"] @ query,
        ),
        (
            params["encoder"]["layer0"]["fc1"]["kernel"],
            state["transformer.encoder.layer.0.ffn.fc1.weight"].T,
        ),
        (
            params["decoder2"]["conv1"]["kernel"][0, 2, 3, 4],
            state["decoder.blocks.2.conv1.0.weight"][4, 3, 0, 2],
        ),
        (statistics["decoder1"]["norm2"]["var"], state["decoder.blocks.1.conv2.1.running_var"]),
        (statistics["bottleneck"]["norm1"]["mean"], state["decoder.conv_more.1.running_mean"]),
        (params["head"]["bias"], state["segmentation_head.0.bias"]),
    ]:
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("image_size", [128, (64, 96), 32])
def test_positions_are_zoomed_to_the_image_size(image_size):
    state = state_dict()
    loaded = load_transunet_torch(state, variables(image_size=image_size))
    grid = state["transformer.embeddings.position_embeddings"].reshape(4, 4, 16)
    height, width = np.broadcast_to(image_size, 2) / 64
    np.testing.assert_allclose(
        loaded["params"]["position_embedding"],
        scipy.ndimage.zoom(grid, (height, width, 1), order=1),
        atol=1e-6,
    )


def wrapped(state):
    return {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}


def tracked(state):
    return state | {"decoder.conv_more.1.num_batches_tracked": np.array(7)}


def transposed(state):
    return {name: np.ascontiguousarray(value.T).T for name, value in state.items()}


def doubled(state):
    return {name: value.astype(np.float64) for name, value in state.items()}


def ordered(state):
    ordered = collections.OrderedDict(state)
    ordered._metadata = {"": {"version": 1}}  # PyTorch's state dicts carry one
    return ordered


@pytest.mark.parametrize("change", [ordered, wrapped, tracked, transposed, doubled])
def test_torch_files_are_read_without_torch(change, tmp_path):
    state = state_dict()
    path = save_torch(tmp_path / "checkpoint.pth", change(state))
    jax.tree.map(
        np.testing.assert_array_equal,
        load_pretrained(path, variables()),
        load_transunet_torch(state, variables()),
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_files_load_as_float32(dtype, tmp_path):
    state = {name: value.astype(jnp.dtype(dtype)) for name, value in state_dict().items()}
    loaded = load_pretrained(save_torch(tmp_path / "half.pth", state), variables())
    bias = loaded["params"]["head"]["bias"]
    assert bias.dtype == jnp.float32
    np.testing.assert_array_equal(bias, state["segmentation_head.0.bias"].astype(np.float32))


def test_another_number_of_classes_can_keep_its_own_head():
    with pytest.raises(ValueError, match="skip_head=True"):
        load_transunet_torch(state_dict(), variables(num_classes=5))
    loaded = load_transunet_torch(state_dict(), variables(num_classes=5), skip_head=True)
    assert loaded["params"]["head"]["bias"].shape == (5,)


def test_every_disagreement_is_listed():
    state = state_dict()
    del state["decoder.conv_more.0.weight"], state["transformer.encoder.layer.0.attn.key.bias"]
    state["fc.weight"] = np.ones((2, 2))
    state["decoder.conv_more.1.bias"] = np.ones((9, 1))
    state["transformer.embeddings.position_embeddings"] = np.ones((1, 15, 16))
    with pytest.raises(ValueError, match="Nothing was loaded") as error:
        load_transunet_torch(state, variables())
    assert str(error.value).splitlines()[1:] == [
        "2 missing: decoder.conv_more.0.weight, transformer.encoder.layer.0.attn.key.bias",
        "1 unexpected: fc.weight",
        "2 misshapen: decoder.conv_more.1.bias is (9, 1), not (9,), "
        "transformer.embeddings.position_embeddings is (1, 15, 16), not (1, a square number, 16)",
    ]


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def other_architecture(path):
    save_npz(path, {"conv1/kernel": np.ones((3, 3, 3, 8)), "head/bias": np.ones(10)})


def other_torch_architecture(path):
    save_torch(path, {"conv1.weight": np.ones((8, 3, 3, 3), np.float32)})


def text(path):
    path.write_text("<html>404: not found</html>")


def empty(path):
    path.write_bytes(b"")


def truncated_torch(path):
    save_torch(path, state_dict())
    path.write_bytes(path.read_bytes()[:-100])


def truncated_npz(path):
    save_npz(path, draw(imagenet21k_shapes(TINY)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped_bit(path):
    save_npz(path, draw(imagenet21k_shapes(TINY)))
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def python_objects(path):
    save_npz(path, {"conv_root/kernel": np.array([Attack(path.parent / "attacked")])})


def code(path):
    save_torch(path, {"state_dict": state_dict(), "epoch": Attack(path.parent / "attacked")})


def no_dictionary(path):
    save_torch(path, [np.ones(3)])


def no_archive(path):
    path.write_bytes(pickle.dumps(Attack(path.parent / "attacked"), protocol=2))


def missing_data(path, *data):
    save_torch(path, {"weight": np.ones(3)})
    with zipfile.ZipFile(path) as archive:
        index = archive.read("archive/data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", index)
        for content in data:
            archive.writestr("archive/data/0", content)


def short_data(path):
    missing_data(path, np.ones(2).tobytes())


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (other_architecture, r"missing: .*\n.*unexpected: conv1/kernel"),
        (other_torch_architecture, r"missing: .*\n.*unexpected: conv1.weight"),
        (text, "neither an .npz file nor a .pth"),
        (empty, "neither an .npz file nor a .pth"),
        (truncated_torch, "neither an .npz file nor a .pth"),
        (truncated_npz, "neither an .npz file nor a .pth"),
        (flipped_bit, "damaged: Bad CRC"),
        (python_objects, "Object arrays cannot be loaded"),
        (code, r"it holds a posix\.mkdir|it holds a nt\.mkdir"),
        (no_archive, r"torch\.save\(torch\.load\(path, weights_only=True\), new_path\)"),
        (no_dictionary, "it holds a list"),
        (missing_data, "no item named 'archive/data/0'"),
        (short_data, "beyond its storage"),
    ],
)
def test_wrong_files_are_named_and_nothing_loads(write, message, tmp_path):
    path = tmp_path / "weights"
    write(path)
    with pytest.raises(ValueError, match=message) as error:
        load_pretrained(path, variables())
    assert str(path) in str(error.value)
    assert "Nothing was loaded" in str(error.value)
    assert not (tmp_path / "attacked").exists()


ZEROS = Storage("0", np.zeros(4, np.float32))


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(ZEROS, 1, (4,), (1,)),
        Tensor(ZEROS, 0, (2, 2), (1, 3)),
        Tensor(ZEROS, 0, (2**62 + 1,), (4,)),  # 4 * 2**62 is 0 in 64 bits
        Tensor(ZEROS, 0, (2**31,), (0,)),
        Tensor(ZEROS, 2**62, (1,), (1,)),
        Tensor(ZEROS, -1, (1,), (1,)),
        Tensor(ZEROS, 3, (2,), (-1,)),
        Tensor(ZEROS, 0, (-1, -4), (1, 1)),
        Tensor(ZEROS, 0, (1.0,), (1,)),
        Tensor(ZEROS, 0, (float("nan"),), (1,)),
        Tensor(ZEROS, 0, (2, 2), (1,)),
        Tensor(ZEROS, 0, "ab", (1, 1)),
        Tensor("0", 0, (1,), (1,)),
        Tensor(None, 0, (1,), (1,)),
        Tensor(Tensor(ZEROS, 0, (4096,), (0,)), 0, (512,), (1,)),
        Tensor(Tensor(ZEROS, 0, (4,), (1,)), 0, (4,), (1,)),
    ],
)
def test_no_tensor_reads_memory_beyond_its_storage(tensor, tmp_path):
    with pytest.raises(ValueError, match=r"bad\.pth.*Nothing was loaded"):
        read_torch(save_torch(tmp_path / "bad.pth", {"w": tensor}))


def test_views_within_a_storage_are_read(tmp_path):
    storage = Storage("0", np.arange(6, dtype=np.float32))
    tensors = {
        "all": Tensor(storage, 0, (2, 3), (3, 1)),
        "transposed": Tensor(storage, 0, (3, 2), (1, 3)),
        "part": Tensor(storage, 2, (2, 2), (2, 1)),
        "scalar": Tensor(storage, 5, (), ()),
        "none": Tensor(storage, 6, (0,), (1,)),
    }
    read = read_torch(save_torch(tmp_path / "good.pth", tensors | {"epoch": 3}))
    expected = {
        "all": [[0, 1, 2], [3, 4, 5]],
        "transposed": [[0, 3], [1, 4], [2, 5]],
        "part": [[2, 3], [4, 5]],
        "scalar": 5,
        "none": [],
    }
    assert read.pop("epoch") is None
    assert {name: array.tolist() for name, array in read.items()} == expected


@pytest.mark.parametrize("name", ["oob_nested", "oob_nested_small"])
def test_files_that_read_foreign_memory_are_refused(name):
    path = SHARED / "cases" / "hostile" / f"{name}.pth"
    if not path.is_file():
        pytest.skip(f"hostile files are not part of the repository: no file {path}")
    with pytest.raises(ValueError, match=r"lies in a _Tensor, not in a storage"):
        load_pretrained(path, variables())


def pickled(path, index):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", index)
    return path


def test_a_file_cannot_give_its_dictionary_other_methods(tmp_path):
    build = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb."
    assert read_torch(pickled(tmp_path / "methods.pth", build)) == {}


def test_memory_is_not_reserved_before_it_is_known(tmp_path, monkeypatch):
    # 64 GiB for the unpickler's table of 2**32 memories
    path = pickled(tmp_path / "memo.pth", b"\x80\x02}r\xff\xff\xff\xff.")
    with pytest.raises(ValueError, match="LONG_BINPUT of 4294967295 in 9 bytes"):
        read_torch(path)
    monkeypatch.setenv("SPECTRAL_JAX_MAX_GIB", "0.001")
    for name in ("bomb.npz", "archive/data.pkl"):
        bomb = tmp_path / "bomb"
        with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, bytes(2_000_000))
        assert bomb.stat().st_size < 4000
        with pytest.raises(ValueError, match=r"bomb: takes 0\.00186 GiB unpacked; the limit"):
            load_pretrained(bomb, variables())


def test_other_models_and_absent_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_pretrained(tmp_path / "absent.npz", variables())
    unet = build_model("unet", num_classes=2, widths=(4, 8))
    images = jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32)
    unet_variables = jax.eval_shape(unet.init, jax.random.key(0), images)
    path = save_npz(tmp_path / "R50+ViT-B_16.npz", draw(imagenet21k_shapes(TINY)))
    with pytest.raises(ValueError, match="unexpected"):
        load_pretrained(path, unet_variables)
    with pytest.raises(ValueError, match="missing"):
        load_pretrained(save_torch(tmp_path / "last.pth", state_dict()), unet_variables)
    with pytest.raises(ValueError, match=r"no data\.pkl"):
        load_transunet_torch(path, variables())

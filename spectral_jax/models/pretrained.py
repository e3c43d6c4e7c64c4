"""Weights that others trained: the ImageNet-21k file and checkpoints of the reference TransUNet.

Both are read without the library that wrote them, and nothing that a file holds is ever executed.
A file must fit the model entirely; else one error lists all that does not, and nothing is loaded.
"""

import collections
import contextlib
import io
import math
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from spectral_jax import limits
from spectral_jax.models.vit import resize_grid

# patterns that turn the path of one of our parameters into its name in a file, in this order
IMAGENET21K_NAMES = (
    (r"^resnet/(block\d+)_", r"\1/"),
    (r"^resnet/", ""),
    (r"^position_embedding$", "Transformer/posembed_input/pos_embedding"),
    (r"^encoder/norm/", "Transformer/encoder_norm/"),
    (r"^encoder/layer(\d+)/", r"Transformer/encoderblock_\1/"),
    (r"/attention_norm/", "/LayerNorm_0/"),
    (r"/attention/", "/MultiHeadDotProductAttention_1/"),
    (r"/mlp_norm/", "/LayerNorm_2/"),
    (r"/fc1/", "/MlpBlock_3/Dense_0/"),
    (r"/fc2/", "/MlpBlock_3/Dense_1/"),
)
TORCH_NAMES = (
    (r"^resnet/(conv|gn)_root/", r"transformer/embeddings/hybrid_model/root/\1/"),
    (r"^resnet/(block\d+)_", r"transformer/embeddings/hybrid_model/body/\1/"),
    (r"/conv_proj/", "/downsample/"),
    (r"^embedding/", "transformer/embeddings/patch_embeddings/"),
    (r"^position_embedding$", "transformer/embeddings/position_embeddings"),
    (r"^encoder/norm/", "transformer/encoder/encoder_norm/"),
    (r"^encoder/layer(\d+)/", r"transformer/encoder/layer/\1/"),
    (r"/attention/", "/attn/"),
    (r"/mlp_norm/", "/ffn_norm/"),
    (r"/(fc\d)/", r"/ffn/\1/"),
    (r"^bottleneck/conv1/", "decoder/conv_more/0/"),
    (r"^bottleneck/norm1/", "decoder/conv_more/1/"),
    (r"^decoder(\d)/conv(\d)/", r"decoder/blocks/\1/conv\2/0/"),
    (r"^decoder(\d)/norm(\d)/", r"decoder/blocks/\1/conv\2/1/"),
    (r"^head/", "segmentation_head/0/"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/(mean|var)$", r"/running_\1"),
    (r"/", "."),
)


TORCH_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "DoubleStorage": np.dtype(np.float64),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype(np.int64),
}


def load_pretrained(
    path: str | os.PathLike, variables: Mapping[str, Any], *, skip_head: bool = False
) -> dict[str, Any]:
    """Returns `variables` of a TransUNet with the weights of either kind of file.

    See `load_imagenet21k` and `load_transunet_torch`; the contents of the file tell which it is.
    """
    with _archive(path) as archive:
        is_torch = any(name.endswith("/data.pkl") for name in archive.namelist())
    if is_torch:
        return load_transunet_torch(path, variables, skip_head=skip_head)
    return load_imagenet21k(path, variables)


def load_imagenet21k(path: str | os.PathLike, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `variables` with ResNet, embeddings and encoder as trained on ImageNet-21k.

    The decoder stays as it is. The file's class token and classifier are left out, and its
    position embeddings interpolated to the model's `image_size`, as the reference does.

    Args:
      path: `R50+ViT-B_16.npz` of github.com/google-research/vision_transformer, or for a
        `TransUNet` of another variant the file of that name.
      variables: of a `TransUNet`, as `init` returns them.

    Raises:
      ValueError: if the file is damaged, or an array is missing, unexpected or misshapen.
    """
    with _archive(path) as archive:
        arrays = {
            key: limits.read_npz(path, archive, key)
            for key in (name.removesuffix(".npy") for name in archive.namelist())
        }

    def shape_in_file(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, 1, 1, *shape) if "/gn" in key else shape

    return _fit(
        str(path),
        arrays,
        variables,
        chosen=r"^params/(resnet|embedding|position_embedding|encoder)\b",
        ignored=r"^(cls|pre_logits/.*|head/.*)$",
        names=IMAGENET21K_NAMES,
        shape_in_file=shape_in_file,
        to_ours=np.reshape,
    )


def load_transunet_torch(
    path_or_state_dict: str | os.PathLike | Mapping[str, Any],
    variables: Mapping[str, Any],
    *,
    skip_head: bool = False,
) -> dict[str, Any]:
    """Returns `variables` with all weights of a checkpoint of the reference TransUNet.

    Args:
      path_or_state_dict: file that `torch.save` (PyTorch 1.6 or newer) wrote from a state dict, or
        a mapping of its names to arrays; also as the entry "state_dict", "model" or
        "model_state_dict" of a larger dictionary, and with `module.` before the names.
      variables: of a `TransUNet`, as `init` returns them; shapes alone do, without `skip_head`.
      skip_head: leave the last layer as it is, for another number of classes.

    Raises:
      ValueError: if the file is damaged or holds anything but tensors, or an array is missing,
        unexpected or misshapen.
    """
    if isinstance(path_or_state_dict, Mapping):
        source, arrays = "the state dict", _unwrap(path_or_state_dict)
    else:
        source, arrays = str(path_or_state_dict), read_torch(path_or_state_dict)

    def shape_in_file(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not key.endswith("kernel"):
            return (math.prod(shape),)
        if len(shape) == 4:
            height, width, inputs, outputs = shape
            return outputs, inputs, height, width
        # dense layers from or to several heads are plain matrices there
        first = 2 if key.endswith("attention/out/kernel") else 1
        return math.prod(shape[first:]), math.prod(shape[:first])

    def to_ours(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T.reshape(shape)

    return _fit(
        source,
        {str(name).removeprefix("module."): array for name, array in arrays.items()},
        variables,
        chosen=r"^(?!params/head/)" if skip_head else "",
        ignored=r"\.num_batches_tracked$" + (r"|^segmentation_head\." if skip_head else ""),
        names=TORCH_NAMES,
        shape_in_file=shape_in_file,
        to_ours=to_ours,
    )


def _fit(
    source: str,
    arrays: Mapping[str, Any],
    variables: Mapping[str, Any],
    *,
    chosen: str,
    ignored: str,
    names: tuple[tuple[str, str], ...],
    shape_in_file: Callable[[str, tuple[int, ...]], tuple[int, ...]],
    to_ours: Callable[[np.ndarray, tuple[int, ...]], np.ndarray],
) -> dict[str, Any]:
    """Returns `variables` with those whose path matches `chosen` taken from `arrays`.

    Arrays whose name matches `ignored` are left out; any other disagreement is an error.
    """
    flat = traverse_util.flatten_dict(variables, sep="/")
    missing, misshapen, known, loaded = [], [], set(), {}
    expected: object
    array: np.ndarray | None
    for key, leaf in flat.items():
        if not re.search(chosen, key):
            continue
        name = key.split("/", 1)[1]
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        known.add(name)
        if name not in arrays:
            missing.append(name)
            continue
        array = np.asarray(arrays[name])
        if key.endswith("/position_embedding"):
            expected = f"(1, a square number, {leaf.shape[-1]})"
            array = _position_grid(array, leaf.shape)
        else:
            expected = shape_in_file(key, leaf.shape)
            array = to_ours(array, leaf.shape) if array.shape == expected else None
        if array is None:
            advice = " (skip_head=True leaves it out)" if key.startswith("params/head/") else ""
            misshapen.append(f"{name} is {np.shape(arrays[name])}, not {expected}{advice}")
        else:
            sharding = getattr(leaf, "sharding", None)
            loaded[key] = jax.device_put(array.astype(leaf.dtype), sharding, may_alias=False)
    unexpected = [name for name in arrays if name not in known and not re.search(ignored, name)]

    problems = [
        f"{len(found)} {problem}: {', '.join(sorted(found))}"
        for problem, found in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", misshapen),
        )
        if found
    ]
    if problems:
        raise ValueError(
            "\n".join([f"{source} does not fit this model. Nothing was loaded.", *problems])
        )
    return traverse_util.unflatten_dict(flat | loaded, sep="/")


def _position_grid(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Positions `[1, n, hidden]` of a square grid as `[height, width, hidden]`, or None.

    A class token in front, which makes `n` one more than a square, is dropped.
    """
    if array.ndim != 3 or array.shape[0] != 1 or array.shape[2] != shape[2]:
        return None
    for tokens in (array[0], array[0, 1:]):
        side = math.isqrt(len(tokens))
        if side and side * side == len(tokens):
            grid = tokens.reshape(side, side, -1)
            if grid.shape == shape:
                return grid
            return np.asarray(resize_grid(jnp.asarray(grid), *shape[:2]))
    return None


@contextlib.contextmanager
def _archive(path: str | os.PathLike) -> Iterator[zipfile.ZipFile]:
    """Opens a zip file; whatever proves wrong with its contents is a `ValueError` naming it."""
    try:
        with zipfile.ZipFile(path) as archive:
            limits.check_bytes(path, sum(entry.file_size for entry in archive.infolist()))
            yield archive
    except zipfile.BadZipFile as error:
        reason = (
            f"neither an .npz file nor a .pth file of PyTorch 1.6 or newer, or damaged: {error}"
        )
        with open(path, "rb") as file:
            if file.read(1) == pickle.PROTO:
                reason = (
                    "a pickle, perhaps of PyTorch before 1.6; where PyTorch is installed, "
                    "torch.save(torch.load(path, weights_only=True), new_path) converts it"
                )
        raise ValueError(f"{path} is {reason}. Nothing was loaded.") from error
    except limits.TooLargeError:
        raise
    except Exception as error:  # what a damaged file raises cannot be foreseen
        if isinstance(error, OSError) and error.filename:
            raise
        raise ValueError(f"{path} cannot be read: {error}. Nothing was loaded.") from error


def _unwrap(state: Mapping[Any, Any]) -> Mapping[Any, Any]:
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    return state


def read_torch(path: str | os.PathLike) -> dict[str, np.ndarray | None]:
    """Returns the arrays of a state dict that `torch.save` wrote, without executing any of it.

    They are views of the file's own bytes, read-only. An entry that is no tensor is None.

    Raises:
      ValueError: if the file is damaged, holds anything but tensors and plain values, or says of a
        tensor what its bytes cannot be.
    """
    with _archive(path) as archive:
        index = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
        if index is None:
            raise ValueError("it holds no data.pkl, so torch.save did not write it")
        content = archive.read(index)
        _check_pickle(content)
        state = _TensorUnpickler(io.BytesIO(content)).load()
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}, not a state dict")
        folder = index.removesuffix("data.pkl")
        storages: dict[_Storage, bytes] = {}

        def read(tensor: Any) -> np.ndarray | None:
            if not isinstance(tensor, _Tensor):
                return None
            storage = tensor.storage
            if not isinstance(storage, _Storage):
                raise ValueError(f"a tensor lies in a {type(storage).__name__}, not in a storage")
            if storage not in storages:
                storages[storage] = archive.read(f"{folder}data/{storage.key}")
            return _view(storages[storage], tensor)

        # the methods of dict itself: a file may give its own dictionaries other ones
        return {str(name): read(value) for name, value in dict.items(dict(_unwrap(state)))}


class _Storage(NamedTuple):
    """Where the numbers of tensors lie: a type of `TORCH_STORAGES`, and an entry of the archive."""

    kind: str
    key: str


class _Tensor(NamedTuple):
    """What a file says of a tensor; nothing of it can be relied on."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _RebuildTensor:
    """`torch._utils._rebuild_tensor_v2`, but it only takes notes."""

    __slots__ = ()

    def __call__(self, storage, offset, size, stride, *_) -> _Tensor:
        return _Tensor(storage, offset, size, stride)


def _check_pickle(content: bytes) -> None:
    """Refuses what makes Python's unpickler reserve memory that the file does not fill."""
    for opcode, argument, _ in pickletools.genops(content):
        if "PUT" in opcode.name and (argument or 0) > len(content):
            raise ValueError(f"damaged: {opcode.name} of {argument} in {len(content)} bytes")


class _TensorUnpickler(pickle.Unpickler):
    """Reads dictionaries of tensors and plain values; refuses any other class or function.

    Nothing that it returns can be altered by the file but the dictionaries themselves.
    """

    def find_class(self, module, name):
        if module == "torch" and name in TORCH_STORAGES:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _RebuildTensor()
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise ValueError(
            f"it holds a {module}.{name}, where only tensors are read; save the state dict alone"
        )

    def persistent_load(self, pid):
        _, kind, key, _, _ = pid
        return _Storage(kind, key)


def _view(content: bytes, tensor: _Tensor) -> np.ndarray:
    """The array of a tensor in the bytes of its storage.

    Raises:
      ValueError: unless all of it lies there, and it has no more values than are there.
    """
    storage, offset, size, stride = tensor
    dtype = TORCH_STORAGES[storage.kind]
    # of any length: a product that does not fit 64 bits would come out small
    numbers = [offset, *size, *stride]
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"a tensor has the offset, size and stride {numbers}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    stored = len(content) // dtype.itemsize
    if max(last, offset - 1, math.prod(size) - 1) >= stored:
        raise ValueError(
            f"a tensor reaches beyond its storage: offset {offset}, size {size}, stride {stride}, "
            f"but {stored} values are there"
        )
    strides = [step * dtype.itemsize for step in stride]
    return np.ndarray(size, dtype, content, offset * dtype.itemsize, strides)

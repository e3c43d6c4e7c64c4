"""The one configuration of a run: typed, checked when it is made, and documented field by field.

A file in `experiments/configs` starts from `default_config()`, an `ml_collections.ConfigDict` with
these very fields, and changes some; so do command-line flags, `--config.optim.learning_rate=0.1`.
`parse_config` turns the result into the dataclasses below.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from spectral_jax.losses import SPECTRAL
from spectral_jax.losses.harmonized import SPATIAL
from spectral_jax.losses.spatial import POOLINGS
from spectral_jax.losses.spectral import BANDS, NORMALISATIONS, SPECTRA, Band


class ConfigError(ValueError):
    """A value, or a key, that a configuration cannot have."""


def _require(condition: bool, key: str, value: Any, expected: str) -> None:
    if not condition:
        raise ConfigError(f"config.{key}={value!r}: expected {expected}")


def _require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    nearest = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    _require(value in choices, key, value, f"one of {', '.join(choices)}{hint}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
      name: of the data set, a key of `spectral_jax.data.datasets.DATASETS`.
      root: folder of its raw files; "" for sets that bring their own.
      data_dir: where prepared sets are kept; "" for the folder of tensorflow-datasets.
      image_size: pictures and slices are resized to this square for training.
      patch_size: (depth, height, width) of patches of volumes, cut at their own resolution, to
        train a three-dimensional network; () to train on slices.
      options: further arguments of the data set's reader.
    """

    name: str = "mni152"
    root: str = ""
    data_dir: str = ""
    image_size: int = 224
    patch_size: tuple[int, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _require(self.image_size >= 8, "data.image_size", self.image_size, "at least 8 pixels")
        _require(
            len(self.patch_size) in (0, 3) and all(size > 0 for size in self.patch_size),
            "data.patch_size",
            self.patch_size,
            "three sizes (depth, height, width), or () for slices",
        )

    @property
    def example_size(self) -> tuple[int, ...]:
        """Spatial size of what the network is trained on."""
        return self.patch_size or (self.image_size, self.image_size)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How training examples are changed at random: see `spectral_jax.data.augment.augment`."""

    flip: bool = True
    quarter_turns: bool = True
    rotation_degrees: float = 20.0
    scale: float = 0.1
    shift: float = 0.05
    affine_probability: float = 0.5
    contrast: float = 0.1
    brightness: float = 0.1
    gamma: float = 0.1
    noise: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _require(value >= 0, f"augment.{field.name}", value, "a number from 0 up")
        for key in ("scale", "affine_probability"):
            value = getattr(self, key)
            _require(value <= 1, f"augment.{key}", value, "at most 1")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
      name: a key of `spectral_jax.models.MODELS`.
      pretrained: file of weights to start from; "" to start from random ones.
      skip_head: leave the last layer random, for another number of classes than the file's.
      bfloat16: compute in bfloat16; parameters, logits and losses stay float32.
      options: fields of the module, for example `widths` of UNet.
    """

    name: str = "unet"
    pretrained: str = ""
    skip_head: bool = False
    bfloat16: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The loss: see `spectral_jax.losses.harmonized_loss`.

    Attributes:
      spatial: "dice", "dice_ce" or "ce".
      spectral: "paper", "midband", a control ("concordance", "pearson", "matthews",
        "focal_frequency"), "none"; or keywords of `spectral_jax.losses.spectral_correlation_loss`,
        such as `{"normalisation": "concordance", "band": {"rings": {"count": 8}}}`: a band has the
        name and the arguments of the function that makes it.
      weight: of the spectral loss.
      ramp: share of the steps over which the weight rises from 0.
      include_background: whether the background counts in the spectral loss.
    """

    spatial: str = "dice_ce"
    spectral: str | Mapping[str, Any] = "paper"
    weight: float = 0.1
    ramp: float = 0.1
    include_background: bool = False

    def __post_init__(self):
        _require_choice("objective.spatial", self.spatial, tuple(SPATIAL))
        if isinstance(self.spectral, str):
            _require_choice("objective.spectral", self.spectral, (*SPECTRAL, "none"))
        else:
            _check_spectral_keywords(self.spectral)
        _require(self.weight >= 0, "objective.weight", self.weight, "a number from 0 up")
        _require(0 <= self.ramp <= 1, "objective.ramp", self.ramp, "a share between 0 and 1")

    @property
    def spectral_term(self) -> str | Mapping[str, Any] | None:
        """`spectral` as `harmonized_loss` takes it."""
        if isinstance(self.spectral, str):
            return None if self.spectral == "none" else self.spectral
        band = self.spectral.get("band")
        return {**self.spectral, "band": make_band(band) if band else None}


SPECTRAL_KEYWORDS = {
    "spectrum": SPECTRA,
    "normalisation": NORMALISATIONS,
    "pooling": POOLINGS,
}


def make_band(named: Mapping[str, Mapping[str, Any]]) -> Band:
    """The band of a configuration: one of `BANDS` by name, with its arguments."""
    ((name, arguments),) = named.items()
    return BANDS[name](**arguments)


def _check_spectral_keywords(keywords: Mapping[str, Any]) -> None:
    _check_keys("objective.spectral.", keywords, (*SPECTRAL_KEYWORDS, "band", "epsilon"))
    for key, choices in SPECTRAL_KEYWORDS.items():
        if key in keywords:
            _require_choice(f"objective.spectral.{key}", keywords[key], choices)
    epsilon = keywords.get("epsilon", 1e-6)
    valid = isinstance(epsilon, float) and epsilon > 0
    _require(valid, "objective.spectral.epsilon", epsilon, "a number above 0")
    band = keywords.get("band")
    if band is None:
        return
    valid = isinstance(band, Mapping) and len(band) == 1
    examples = "one of soft_band, power_band, rings with its arguments, as {'rings': {'count': 8}}"
    _require(valid, "objective.spectral.band", band, examples)
    _check_keys("objective.spectral.band.", band, tuple(BANDS))
    try:
        make_band(band)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.objective.spectral.band={band!r}: {error}") from error


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimiser.

    Attributes:
      name: "sgd": momentum, L2 on all parameters and polynomial decay, TransUNet's recipe; or
        "adamw": decay of kernels only, warm-up and cosine.
      learning_rate: at its highest.
      weight_decay: of either kind.
      momentum: of "sgd".
      poly_power: exponent of the decay of "sgd".
      warmup: share of the steps over which the learning rate of "adamw" rises from 0.
      clip_norm: gradients are scaled down to this norm; 0 for never.
      ema_decay: of the running mean of parameters that is evaluated; 0 for none.
    """

    name: str = "sgd"
    learning_rate: float = 0.01
    weight_decay: float = 1e-4
    momentum: float = 0.9
    poly_power: float = 0.9
    warmup: float = 0.05
    clip_norm: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self):
        _require_choice("optim.name", self.name, ("sgd", "adamw"))
        _require(self.learning_rate > 0, "optim.learning_rate", self.learning_rate, "above 0")
        for key in ("weight_decay", "momentum", "poly_power", "clip_norm"):
            value = getattr(self, key)
            _require(value >= 0, f"optim.{key}", value, "a number from 0 up")
        for key in ("warmup", "momentum", "ema_decay"):
            value = getattr(self, key)
            _require(0 <= value < 1, f"optim.{key}", value, "a number from 0 up to below 1")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How long, and how often to look.

    Attributes:
      seed: of everything random: parameters, order, augmentation, dropout.
      epochs: passes over the training split; steps are epochs x examples / batch size.
      batch_size: of all devices together.
      accumulate: parts that the batch goes through the network in, one after the other, to take
        less memory; the step is that of the whole batch, but for batch normalisation, which sees
        a part at a time.
      validate_every: epochs between validations.
      save_every_steps: steps between checkpoints, beside those at validations.
      log_every_steps: steps between lines in metrics.jsonl.
    """

    seed: int = 0
    epochs: float = 150.0
    batch_size: int = 24
    accumulate: int = 1
    validate_every: float = 5.0
    save_every_steps: int = 500
    log_every_steps: int = 10

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.name != "seed":
                value = getattr(self, field.name)
                _require(value > 0, f"train.{field.name}", value, "above 0")
        _require(self.seed >= 0, "train.seed", self.seed, "a number from 0 up")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices there are along each axis; the batch is split over all of them.

    Attributes:
      data: copies of the parameters; -1 for as many as there are devices for.
      fsdp: devices that share one copy of the parameters and of the optimiser's state.
    """

    data: int = -1
    fsdp: int = 1

    def __post_init__(self):
        _require(self.data > 0 or self.data == -1, "mesh.data", self.data, "above 0, or -1")
        _require(self.fsdp > 0, "mesh.fsdp", self.fsdp, "above 0")


@dataclasses.dataclass(frozen=True)
class Config:
    """All of it, by section."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)


def default_config() -> ConfigDict:
    """The defaults, as a `ConfigDict` that refuses unknown keys and other types."""
    values = dataclasses.asdict(Config())
    # a name or keywords
    values["objective"]["spectral"] = FieldReference(Config().objective.spectral, field_type=object)
    return ConfigDict(values)


def parse_config(values: ConfigDict | Mapping[str, Any]) -> Config:
    """Turns nested values into a `Config`.

    Raises:
      ConfigError: for an unknown key, with the nearest known one, or for a bad value.
    """
    if isinstance(values, ConfigDict):
        values = values.to_dict()
    sections = dataclasses.asdict(Config())
    _check_keys("", values, tuple(sections))
    parsed = {}
    for name, defaults in sections.items():
        given = values.get(name, {})
        _check_keys(f"{name}.", given, tuple(defaults))
        for key, value in given.items():
            _check_type(f"{name}.{key}", value, defaults[key])
        tuples = {k: tuple(v) for k, v in given.items() if isinstance(defaults[k], tuple)}
        parsed[name] = type(getattr(Config(), name))(**given | tuples)
    return Config(**parsed)


def _check_keys(prefix: str, values: Any, known: tuple[str, ...]) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"config.{prefix}: expected settings by name, not {values!r}")
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean config.{prefix}{nearest[0]}?" if nearest else f"known: {known}"
            raise ConfigError(f"unknown key config.{prefix}{key}; {hint}")


def _check_type(key: str, value: Any, default: Any) -> None:
    if key == "objective.spectral" and isinstance(value, Mapping):
        return
    if isinstance(default, tuple) and isinstance(value, list | tuple):  # a list from JSON
        if any(isinstance(item, bool) or not isinstance(item, int | float) for item in value):
            raise ConfigError(f"config.{key}={value!r}: expected numbers")
        return
    expected = Mapping if isinstance(default, dict) else type(default)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        raise ConfigError(f"config.{key}={value!r}: expected {expected.__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"config.{key}={value!r}: expected a finite number")

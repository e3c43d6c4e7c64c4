"""The one configuration of a run: typed, checked when it is made, and documented field by field.

A file in `spectral_jax/configs` starts from `default_config()`, an `ml_collections.ConfigDict` with
these very fields, and changes some; so do command-line flags, `--config.optim.learning_rate=0.1`.
`parse_config` turns the result into the dataclasses below.
"""

import dataclasses
import difflib
import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from ml_collections import ConfigDict, FieldReference

from spectral_jax.losses import LOSSES, SPATIAL, SPECTRAL
from spectral_jax.losses.activation import ACTIVATIONS, Activation
from spectral_jax.losses.spatial import POOLINGS
from spectral_jax.losses.spectral import BANDS, NORMALISATIONS, SPECTRA, Band
from spectral_jax.models import MODELS
from spectral_jax.models.transfer import PARTS, Part


class ConfigError(ValueError):
    """A value, or a key, that a configuration cannot have."""


def _require(condition: bool, key: str, value: Any, expected: str) -> None:
    if not condition:
        raise ConfigError(f"config.{key}={value!r}: expected {expected}")


def _require_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    nearest = difflib.get_close_matches(str(value), choices, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    _require(value in choices, key, value, f"one of {', '.join(choices)}{hint}")


class Range(NamedTuple):
    """The numbers that a setting may be."""

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None

    def __contains__(self, value: object) -> bool:
        number = cast(float, value)
        return (
            (self.above is None or number > self.above)
            and (self.least is None or number >= self.least)
            and (self.below is None or number < self.below)
            and (self.most is None or number <= self.most)
        )

    def __str__(self) -> str:
        names = {"least": "at least", "most": "at most"}
        ends = {key: end for key, end in self._asdict().items() if end is not None}
        return " and ".join(f"{names.get(key, key)} {end:g}" for key, end in ends.items())


def number(default: Any, **limits: float) -> Any:
    """A field whose value, or values, are in a `Range`; `_check_ranges` looks."""
    return dataclasses.field(default=default, metadata={"range": Range(**limits)})


def _check_ranges(name: str, section: Any) -> None:
    for field in dataclasses.fields(section):
        allowed = field.metadata.get("range")
        value = getattr(section, field.name)
        for one in value if isinstance(value, tuple) else (value,):
            if allowed is not None and one not in allowed:
                raise ConfigError(f"config.{name}.{field.name}={value!r}: expected {allowed}")


CHECKPOINTS = ("best", "last")
FLOAT32_MAX = 3.4e38
MANY = 2**30  # examples, steps or devices: more than there ever are


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
      name: of the data set, a key of `spectral_jax.data.datasets.DATASETS`.
      root: folder of its raw files; "" for sets that bring their own.
      data_dir: where prepared sets are kept; "" for the folder of tensorflow-datasets.
      image_size: pictures and slices are resized to this square for training.
      patch_size: (depth, height, width) of patches of volumes, to train a three-dimensional
        network; (height, width) of patches of slices or pictures; () to train on whole slices.
      foreground: share of the patches that are cut around foreground, classes in turn.
      resample: bring cases to one spacing before patches are cut; predictions come back to the
        grid of each case. Without, and where the spacing is not known, each keeps its own.
      spacing_mm: that spacing, for each number of `patch_size`; () for the median of the training
        cases; of a fold, of all cases.
      fold: of a cross-validation, which fold to hold out, from 0; -1 for none.
      folds: how many there are.
      options: further arguments of the data set's reader.
    """

    name: str = "mni152"
    root: str = ""
    data_dir: str = ""
    image_size: int = number(224, least=8, most=16384)
    patch_size: tuple[int, ...] = number((), least=1, most=4096)
    foreground: float = number(1 / 3, least=0, most=1)
    resample: bool = True
    spacing_mm: tuple[float, ...] = number((), above=0, most=1000)
    fold: int = number(-1, least=-1, most=MANY)
    folds: int = number(5, least=2, most=MANY)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_ranges("data", self)
        _require(
            len(self.patch_size) in (0, 2, 3) and all(isinstance(n, int) for n in self.patch_size),
            "data.patch_size",
            self.patch_size,
            "sizes (depth, height, width), (height, width) of slices, or () for whole slices",
        )
        _require(
            not self.spacing_mm or (self.resample and len(self.spacing_mm) == len(self.patch_size)),
            "data.spacing_mm",
            self.spacing_mm,
            f"a number for each of patch_size={self.patch_size}, with resample=True; or ()",
        )
        _require(self.fold < self.folds, "data.fold", self.fold, f"below data.folds={self.folds}")

    @property
    def example_size(self) -> tuple[int, ...]:
        """Spatial size of what the network is trained on."""
        return self.patch_size or (self.image_size, self.image_size)

    @property
    def scored_split(self) -> str:
        """What a trained network is scored on: the test split, or what its fold held out."""
        return "test" if self.fold < 0 else "fold"


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How training examples are changed at random: see `spectral_jax.data.augment.augment`."""

    flip: bool = True
    quarter_turns: bool = True
    rotation_degrees: float = number(20.0, least=0, most=180)
    scale: float = number(0.1, least=0, below=1)
    shift: float = number(0.05, least=0, most=1)
    affine_probability: float = number(0.5, least=0, most=1)
    contrast: float = number(0.1, least=0, most=1)
    brightness: float = number(0.1, least=0, most=1)
    gamma: float = number(0.1, least=0, most=5)
    noise: float = number(0.0, least=0, most=1)

    def __post_init__(self):
        _check_ranges("augment", self)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network.

    Attributes:
      name: a key of `spectral_jax.models.MODELS`.
      pretrained: file of weights, or folder of a run, to start from; "" to start from random ones.
      pretrained_checkpoint: of that run: "best" or "last".
      pretrained_part: what to take of it: "all", or "encoder" alone.
      skip_head: leave the last layer random, for other classes than the file's; between runs whose
        classes differ this happens of itself.
      bfloat16: compute in bfloat16; parameters, logits and losses stay float32.
      activation: "softmax" for classes that exclude each other, "sigmoid" for each class by itself;
        "" for sigmoid where the classes of the data set overlap, and softmax otherwise.
      options: fields of the network's module. In a file or a flag they are under its name,
        `config.model.unet.widths`, so that those of another network do not count.
    """

    name: str = "unet"
    pretrained: str = ""
    pretrained_checkpoint: str = "best"
    pretrained_part: Part = "all"
    skip_head: bool = False
    bfloat16: bool = False
    activation: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _require_choice("model.activation", self.activation, ("", *ACTIVATIONS))
        _require_choice("model.pretrained_checkpoint", self.pretrained_checkpoint, CHECKPOINTS)
        _require_choice("model.pretrained_part", self.pretrained_part, PARTS)

    def activation_for(self, overlapping: bool) -> Activation:
        """The activation, for classes that overlap or exclude each other.

        Raises:
          ConfigError: for a softmax over classes that overlap.
        """
        if overlapping and self.activation == "softmax":
            raise ConfigError(
                "config.model.activation='softmax', but the classes of this data set overlap: "
                "say 'sigmoid', or leave it out"
            )
        return "sigmoid" if overlapping or self.activation == "sigmoid" else "softmax"


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """The loss: see `spectral_jax.losses.harmonized_loss`.

    Attributes:
      spatial: "dice", "dice_ce", "ce" or "tversky"; or any losses of `spectral_jax.losses.LOSSES`
        with their keywords, and the `weight` of each in the sum, such as `{"cross_entropy":
        {"label_smoothing": 0.1, "class_weights": "frequency"}, "dice": {"pooling": "batch"}}`.
        Class weights are numbers, one a channel, or "frequency" for what makes up for how rare a
        class is in the training split.
      spectral: "paper", "midband", a control ("concordance", "pearson", "matthews",
        "focal_frequency"), "none"; or keywords of `spectral_jax.losses.spectral_correlation_loss`,
        such as `{"normalisation": "concordance", "band": {"rings": {"count": 8}}}`: a band has the
        name and the arguments of the function that makes it.
      weight: of the spectral loss.
      ramp: share of the steps over which the weight rises from 0.
      include_background: whether the background counts in the spectral loss.
    """

    spatial: str | Mapping[str, Mapping[str, Any]] = "dice_ce"
    spectral: str | Mapping[str, Any] = "paper"
    weight: float = number(0.1, least=0, most=1e6)
    ramp: float = number(0.1, least=0, most=1)
    include_background: bool = False

    def __post_init__(self):
        if isinstance(self.spatial, str):
            _require_choice("objective.spatial", self.spatial, tuple(SPATIAL))
        else:
            _check_spatial_keywords(self.spatial)
        if isinstance(self.spectral, str):
            _require_choice("objective.spectral", self.spectral, (*SPECTRAL, "none"))
        else:
            _check_spectral_keywords(self.spectral)
        _check_ranges("objective", self)

    @property
    def spectral_term(self) -> str | Mapping[str, Any] | None:
        """`spectral` as `harmonized_loss` takes it."""
        if isinstance(self.spectral, str):
            return None if self.spectral == "none" else self.spectral
        band = self.spectral.get("band")
        return {**self.spectral, "band": make_band(band) if band else None}


BY_FREQUENCY = "frequency"
# the step gives these
NOT_IN_A_CONFIG = ("activation", "valid", "axis_name", "sample_weights", "band")


def _check_spatial_keywords(terms: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks names and types; the losses themselves know which numbers make sense."""
    _require(len(terms) > 0, "objective.spatial", terms, "a loss by name, or keywords of some")
    _check_keys("objective.spatial.", terms, tuple(LOSSES))
    for name, keywords in terms.items():
        key = f"objective.spatial.{name}"
        _require(isinstance(keywords, Mapping), key, keywords, "keywords of the loss, or {}")
        defaults = {"weight": 1.0} | {
            keyword: parameter.default
            for keyword, parameter in inspect.signature(LOSSES[name]).parameters.items()
            if parameter.kind == parameter.KEYWORD_ONLY and keyword not in NOT_IN_A_CONFIG
        }
        _check_keys(f"{key}.", keywords, tuple(defaults))
        for keyword, value in keywords.items():
            if keyword == "class_weights":
                _check_class_weights(f"{key}.class_weights", value)
            else:
                _check_type(f"{key}.{keyword}", value, defaults[keyword])


def _check_class_weights(key: str, value: Any) -> None:
    numbers = isinstance(value, tuple | list) and all(
        isinstance(weight, int | float) and 0 <= weight < math.inf for weight in value
    )
    _require(
        numbers or value in (None, BY_FREQUENCY), key, value, "numbers from 0 up, or 'frequency'"
    )


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
      learning_rate: peak value.
      weight_decay: of either kind.
      momentum: of "sgd".
      poly_power: exponent of the decay of "sgd"; with 0 the learning rate stays.
      warmup: share of the steps over which the learning rate of "adamw" rises from 0.
      clip_norm: gradients are scaled down to this norm; 0 for never.
      ema_decay: of the running mean of parameters that is evaluated, after a warm-up: see
        `spectral_jax.training.optim.ema_decay_schedule`; 0 for none.
      restarts: steps at which the schedule of the learning rate starts again, to train a finished
        run longer: warm restarts (Loshchilov and Hutter, ICLR 2017).
    """

    name: str = "sgd"
    learning_rate: float = number(0.01, least=1e-12, most=FLOAT32_MAX)
    weight_decay: float = number(1e-4, least=0, most=FLOAT32_MAX)
    momentum: float = number(0.9, least=0, below=1)
    poly_power: float = number(0.9, least=0, most=100)
    warmup: float = number(0.05, least=0, below=1)
    clip_norm: float = number(0.0, least=0, most=FLOAT32_MAX)
    ema_decay: float = number(0.0, least=0, below=1)
    restarts: tuple[int, ...] = number((), least=1, most=MANY)

    def __post_init__(self):
        _require_choice("optim.name", self.name, ("sgd", "adamw"))
        _check_ranges("optim", self)
        rising = all(isinstance(step, int) for step in self.restarts) and sorted(
            set(self.restarts)
        ) == list(self.restarts)
        _require(rising, "optim.restarts", self.restarts, "whole numbers of steps that rise")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Training length and intervals.

    Attributes:
      seed: of everything random: parameters, order, augmentation, dropout.
      epochs: passes over the training split; steps are epochs x examples / batch size.
      steps: the length in steps, whatever the number of examples, with `epochs=0`; 0 for `epochs`.
      batch_size: of all devices together.
      accumulate: parts that the batch goes through the network in, one after the other, to take
        less memory; the step is that of the whole batch, but for batch normalisation, which sees
        a part at a time.
      validate_every: epochs between validations; with `steps`, a tenth of them lies between.
      save_every_steps: steps between checkpoints, beside those at validations.
      save_every_minutes: the longest time between checkpoints.
      log_every_steps: steps between lines in metrics.jsonl.
      postprocess: "largest_component" decides after training, for each class, whether only its
        largest component is kept: where that raises the validation Dice; or "none".
    """

    seed: int = number(0, least=0, below=2**31)
    epochs: float = number(150.0, least=0, most=1e9)
    steps: int = number(0, least=0, most=MANY)
    batch_size: int = number(24, least=1, most=MANY)
    accumulate: int = number(1, least=1, most=MANY)
    validate_every: float = number(5.0, above=0, most=1e9)
    save_every_steps: int = number(500, least=1, most=MANY)
    save_every_minutes: float = number(3.0, above=0, most=1e9)
    log_every_steps: int = number(10, least=1, most=MANY)
    postprocess: str = "none"

    def __post_init__(self):
        _check_ranges("train", self)
        _require_choice("train.postprocess", self.postprocess, ("none", "largest_component"))
        _require(
            bool(self.epochs) != bool(self.steps),
            "train.epochs",
            self.epochs,
            f"a number above 0 with config.train.steps=0, or 0 with steps; steps={self.steps}",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices there are along each axis; the batch is split over all of them.

    Attributes:
      data: copies of the parameters; -1 for as many as there are devices for.
      fsdp: devices that share one copy of the parameters and of the optimiser's state.
    """

    data: int = number(-1, least=-1, most=MANY)
    fsdp: int = number(1, least=1, most=MANY)

    def __post_init__(self):
        _require(self.data != 0, "mesh.data", self.data, "at least 1, or -1")
        _check_ranges("mesh", self)


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
    for term in ("spatial", "spectral"):
        default = values["objective"][term]
        values["objective"][term] = FieldReference(default, field_type=object)
    del values["model"]["options"]
    values["model"] |= {network: {} for network in MODELS}
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
    values = {**values, "model": _own_options(values.get("model", {}))}
    parsed = {}
    for name, defaults in sections.items():
        given = values.get(name, {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"config.{name}={given!r}: expected its settings")
        _check_keys(f"{name}.", given, tuple(defaults))
        for key, value in given.items():
            _check_type(f"{name}.{key}", value, defaults[key])
        tuples = {k: tuple(v) for k, v in given.items() if isinstance(defaults[k], tuple)}
        parsed[name] = type(getattr(Config(), name))(**{**given, **tuples})
    return Config(**parsed)


def as_keywords(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as keyword arguments; JSON made lists of their tuples."""
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in options.items()
    }


def _own_options(model: Mapping[str, Any]) -> dict[str, Any]:
    """The section of the network in which only the options of the chosen one are left."""
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    _check_keys("model.", model, (*known, *MODELS))
    for key in ("options", *MODELS):
        _check_type(f"model.{key}", model.get(key, {}), {})
    _check_type("model.name", model.get("name", ""), "")
    rest = {key: value for key, value in model.items() if key not in MODELS}
    own = model.get(model.get("name", ModelConfig.name), {})
    return {**rest, "options": {**own, **model.get("options", {})}}


def _check_keys(prefix: str, values: Any, known: tuple[str, ...]) -> None:
    if not isinstance(values, Mapping):
        raise ConfigError(f"config.{prefix}: expected settings by name, not {values!r}")
    for key in values:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean config.{prefix}{nearest[0]}?" if nearest else f"known: {known}"
            raise ConfigError(f"unknown key config.{prefix}{key}; {hint}")


def _check_type(key: str, value: Any, default: Any) -> None:
    if key in ("objective.spatial", "objective.spectral") and isinstance(value, Mapping):
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

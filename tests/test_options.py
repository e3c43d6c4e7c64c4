"""Options of data sets and networks: typed and checked in one place."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from spectral_jax.models import build_model
from spectral_jax.options import read_options

KINDS = {
    "flag": bool,
    "count": int,
    "share": float,
    "name": str,
    "names": Sequence[str],
    "sizes": Sequence[int],
    "either": int | str,
    "perhaps": int | None,
    "size": int | Sequence[int],
    "anything": Any,
}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("flag", "false", False),
        ("flag", "True", True),
        ("flag", np.True_, True),
        ("count", "13", 13),
        ("count", np.int64(3), 3),
        ("share", "0.25", 0.25),
        ("share", 0, 0.0),
        ("name", "13", "13"),
        ("name", "true", "true"),
        ("names", "('a', 'b')", ("a", "b")),
        ("names", "background, polyp", ("background", "polyp")),
        ("names", ["a"], ("a",)),
        ("sizes", [4, 8], (4, 8)),
        ("sizes", "[4, 8]", (4, 8)),
        ("either", "0", 0),
        ("either", "T1", "T1"),
        ("perhaps", None, None),
        ("perhaps", "none", None),
        ("perhaps", "2", 2),
        ("size", "224", 224),
        ("size", (32, 64), (32, 64)),
    ],
)
def test_what_is_given_becomes_what_is_expected(name, given, expected):
    value = read_options("a set", {name: given}, KINDS, ValueError)[name]
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("flag", value) for value in ("maybe", "yes", "1", "", 1, 0, None)),
        *(("count", value) for value in ("1.5", "many", "", True, "true", 1.0, None, [1])),
        *(("share", value) for value in ("nan", "inf", "1e999", float("nan"), True, "x", None)),
        *(("name", value) for value in (13, None, True, ["a"])),
        *(("names", value) for value in (3, None, True, [1], "(1, 2)", "('a'", {"a": "b"})),
        *(("sizes", value) for value in ("a,b", [4, "b"], [True], 4, "(" * 10_000)),
        *(("either", value) for value in (None, True, 1.5)),
    ],
)
def test_what_does_not_fit_is_named(name, given):
    with pytest.raises(ValueError, match=rf"a set: option {name}=.*: expected "):
        read_options("a set", {name: given}, KINDS, ValueError)


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(ValueError, match="a set has no option 'shre'; did you mean 'share'"):
        read_options("a set", {"shre": 1}, KINDS, ValueError)


@pytest.mark.parametrize(
    ("model", "option", "message"),
    [
        ("unet", {"widths": "wide"}, "expected a list, each a whole number"),
        ("unet", {"widths": 4}, "expected a list"),
        ("unet", {"widths": (4, 0)}, r"widths=\(4, 0\)"),
        ("unet", {"norm": 3}, "expected text"),
        ("unet", {"norm": "layer"}, "norm='layer'; choose one of"),
        ("transunet", {"dropout_rate": "high"}, "expected a number"),
        ("transunet", {"dropout_rate": 1.5}, "dropout_rate=1.5"),
        ("transunet", {"num_heads": 0}, "at least 1"),
        ("transunet", {"hidden_size": 10, "num_heads": 3}, "cannot be shared evenly"),
        ("transunet", {"remat": "maybe"}, "expected true or false"),
        ("transunet", {"image_size": 30}, "divisible by 16"),
    ],
)
def test_networks_refuse_what_they_cannot_be(model, option, message):
    import jax

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            build_model(model, num_classes=2, **option).init,
            jax.random.key(0),
            jnp.zeros((1, 32, 32, 1)),
        )

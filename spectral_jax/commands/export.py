"""Writes a trained network as files that need neither this package nor its training code.

    spectral-jax export --workdir=runs/kvasir_unet --output=exported
    spectral-jax export --workdir=runs/kvasir_unet --output=exported --format=onnx
    spectral-jax export --workdir=runs/kvasir_unet --output=shared --format=weights

`model.jax` is the network with its weights, for `jax.export.deserialize`; `model.json` says what to
give it and what comes out; `README.md` is a model card, with the lines that load it. ONNX needs a
converter, which asks for an older orbax but does not use it here:

    pip install onnx onnx-ir onnxruntime dm-pix equinox && pip install --no-deps jax2onnx

"weights" are for this package: a small folder that `predict`, `evaluate` and `export` take as
--workdir.

What is written gave the network's probabilities on random images; else the command fails.
"""

import pathlib

from absl import flags as absl_flags
from etils import epath

from spectral_jax.commands import flags
from spectral_jax.inference.export import PLATFORMS, write_bundle
from spectral_jax.inference.trained import restore_all, write_weights
from spectral_jax.lock import only_writer


def main() -> None:
    workdirs = [*map(flags.or_example, flags.paths(WORKDIR))]
    output = pathlib.Path(OUTPUT.value).expanduser()
    trained = restore_all(workdirs, CHECKPOINT.value)
    with only_writer(output):
        if FORMAT.value == "weights":
            write_weights(trained, epath.Path(output))
            print(f"{output}: the network alone; give it to predict as --workdir={output}")
            return
        facts = write_bundle(
            trained,
            workdirs[0] if len(workdirs) == 1 else output,
            output,
            checkpoint=CHECKPOINT.value,
            onnx=FORMAT.value == "onnx",
            platforms=RUN_ON.value,
        )
    difference = facts["largest_difference"]
    print(f"{output / facts['file']}: differs from the network by {difference:.1e} at most")


if __name__ == "__main__":
    WORKDIR = flags.define_workdirs()
    OUTPUT = absl_flags.DEFINE_string("output", None, "Folder of the bundle.", required=True)
    CHECKPOINT = flags.define_checkpoint()
    FORMAT = absl_flags.DEFINE_enum(
        "format", "stablehlo", ["stablehlo", "onnx", "weights"], "What to write."
    )
    RUN_ON = absl_flags.DEFINE_list(
        "platforms",
        ["cpu", "cuda", "tpu"],
        f"Where StableHLO is to run: of {', '.join(PLATFORMS)}.",
    )
    flags.run(main)

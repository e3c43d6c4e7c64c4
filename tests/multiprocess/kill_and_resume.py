"""Kills a run again and again, and checks that it ends as one that was left alone.

    python tests/multiprocess/kill_and_resume.py --kills=20 --processes=2

Each kill comes at a random instant, to one process or to all of them. No checkpoint may go missing;
at the end all arrays of the last one have to be equal, bit for bit, to those of an undisturbed run
on the same devices.
"""

import argparse
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = (
    "--config=experiments/configs/tiny.py",
    "--config.data.image_size=32",
    "--config.train.save_every_steps=2",
    "--config.train.validate_every=0.5",
    "--join_seconds=30",  # one that was killed before it joined is given up soon
)
# a process killed while joining is missed after `join_seconds`, a later one after a minute without
# its heartbeat
PATIENCE_SECONDS = 120


# root may write anywhere: without this capability it minds the modes of files, as others do
MIND_MODES = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")


def start(
    flags: tuple[str, ...], processes: int = 1, devices: int = 1, command: str = "train"
) -> list[subprocess.Popen]:
    """Starts the processes of one run."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    count = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": count}
    as_user = MIND_MODES if os.geteuid() == 0 and shutil.which("setpriv") else ()
    program = [*as_user, sys.executable, "-m", f"experiments.{command}", *flags]
    return [
        subprocess.Popen(
            [
                *program,
                f"--coordinator_address={address}",
                f"--process_count={processes}",
                f"--process_index={index}",
            ],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for index in range(processes)
    ]


def finish(processes: list[subprocess.Popen], timeout: float = 200) -> list[tuple[int, str]]:
    """Exit codes and outputs; what does not end in time is an error, and is ended."""
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, text) for p, text in zip(processes, outputs, strict=True)]


def checkpoints(workdir: pathlib.Path) -> dict[int, list[np.ndarray]]:
    """Every array of every checkpoint, read without the package."""
    found = {}
    for folder in (workdir / "checkpoints").glob("*"):
        if folder.name.isdigit():
            with ocp.PyTreeCheckpointer() as reader:
                names = reader.metadata(folder / "default").item_metadata.tree
                how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
                arrays = reader.restore(folder / "default", restore_args=how)
            found[int(folder.name)] = jax.tree.leaves(arrays)
    return found


def kill_and_resume(
    folder: pathlib.Path, kills: int, processes: int, seed: int, flags: tuple[str, ...] = ()
) -> int:
    """Kills that many times; whenever the run comes to its end nevertheless, begins a new one.

    Returns:
      How many runs were compared with the undisturbed one.

    Raises:
      AssertionError: for a difference, a checkpoint that went missing, or a survivor that waits.
    """
    draw = random.Random(seed)
    whole, killed = folder / "whole", folder / "killed"
    for again in (False, True):  # the second time nothing is compiled, as after a kill
        shutil.rmtree(whole, ignore_errors=not again)
        begin = time.monotonic()
        ended = finish(start((*TINY, *flags, f"--workdir={whole}"), processes))
        assert all(code == 0 for code, _ in ended), ended
        seconds = time.monotonic() - begin
    theirs = checkpoints(whole)

    command = (*TINY, *flags, f"--workdir={killed}")
    newest = landed = compared = 0
    while landed < kills or compared == 0:
        running = start(command, processes)
        victims = []
        if landed < kills:
            time.sleep(draw.uniform(0.2, 1.0) * seconds)
            victims = running if draw.random() < 0.5 else [draw.choice(running)]
            met = any(victim.poll() is None for victim in victims)
            landed += met
            for victim in victims:
                victim.send_signal(signal.SIGKILL)
        instant = time.monotonic()
        ended = finish(running, PATIENCE_SECONDS)
        codes = [code for code, _ in ended]
        ours = checkpoints(killed)
        print(
            f"{landed} kills, exit codes {codes} after {time.monotonic() - instant:.0f} s more, "
            f"checkpoints {sorted(ours)}",
            flush=True,
        )
        for code, output in ended:
            if code not in (0, -signal.SIGKILL):
                print(f"  {code}: {output.splitlines()[-1][:200]}", flush=True)
        assert victims or codes == [0] * processes, ended
        assert max(ours, default=0) >= newest, "a checkpoint went missing"
        newest = max(ours, default=0)
        if codes == [0] * processes:
            assert newest == max(theirs)
            for a, b in zip(ours[newest], theirs[newest], strict=True):
                np.testing.assert_array_equal(a, b)
            compared += 1
            newest = 0
            shutil.rmtree(killed)
    return compared


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        compared = kill_and_resume(
            pathlib.Path(temporary), options.kills, options.processes, options.seed, tuple(rest)
        )
    print(f"{options.kills} kills; final arrays of {compared} runs are bit-identical")

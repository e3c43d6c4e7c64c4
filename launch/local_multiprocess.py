"""Starts a command as several processes on this machine: the rehearsal for a pod.

    python launch/local_multiprocess.py --processes=2 --devices=4 -- \
        python -m experiments.train --config=experiments/configs/tiny.py --workdir=runs/tiny

Each process has as many virtual CPU devices as asked for. When one ends badly the others are given
a while to notice, then they are ended too. SIGTERM and Ctrl-C are passed on to all.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

PATIENCE_SECONDS = 90  # a process notices the death of another within a minute


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--devices", type=int, default=1, help="virtual CPU devices of each process"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands and end")
    parser.add_argument("command", nargs="+", help="what to start, after --")
    options = parser.parse_args()

    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    count = f"--xla_force_host_platform_device_count={options.devices}"
    added = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {count}".strip(),
    }
    commands = [
        [*options.command, f"--coordinator_address={address}",
         f"--process_count={options.processes}", f"--process_index={index}"]
        for index in range(options.processes)
    ]  # fmt: skip
    if options.dry_run:
        for command in commands:
            print(
                *(f"{key}={shlex.quote(value)}" for key, value in added.items()),
                shlex.join(command),
            )
        return 0

    # out of the terminal's reach, that Ctrl-C comes once: the second one ends a process at once
    processes = [
        subprocess.Popen(command, env=os.environ | added, start_new_session=True)
        for command in commands
    ]
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: [p.send_signal(received) for p in processes])
    deadline = None
    while any(process.poll() is None for process in processes):
        if deadline is None and any(process.poll() for process in processes):
            deadline = time.monotonic() + PATIENCE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(0.1)
    codes = [process.returncode for process in processes]
    for index, code in enumerate(codes):
        if code:
            print(f"process {index} ended with code {code}", file=sys.stderr)
    return next((code for code in codes if code), 0) % 256


if __name__ == "__main__":
    sys.exit(main())

"""Launch scripts: what they would start, by their dry runs."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).resolve().parents[1] / "launch"
FLAGS = ("--config=experiments/configs/tiny.py", "--workdir=gs://bucket/runs/tiny")


def dry_run(*command, **variables):
    environment = os.environ | {"DRY_RUN": "1"} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gke.sh", "slurm.sbatch"])
def test_scripts_are_sound(script):
    assert dry_run("bash", "-n", LAUNCH / script).returncode == 0
    missing = dry_run("bash", LAUNCH / script)
    if script != "slurm.sbatch":
        assert missing.returncode != 0
        assert "expected" in missing.stderr
        assert dry_run("bash", LAUNCH / script, "lunch").returncode == 2


def test_slurm_starts_a_process_for_each_task():
    ended = dry_run("bash", LAUNCH / "slurm.sbatch", *FLAGS)
    assert shlex.split(ended.stdout) == [
        *("srun", "--kill-on-bad-exit=1", "python", "-m", "experiments.train"), *FLAGS
    ]  # fmt: skip


def test_a_tpu_slice_from_nothing_to_nothing():
    def commands(*arguments):
        ended = dry_run("bash", LAUNCH / "tpu_pod.sh", *arguments, TPU_NAME="mine", TPU_TYPE="v4-8")
        assert ended.returncode == 0, ended.stderr
        return [shlex.split(line) for line in ended.stdout.splitlines()]

    (create,) = commands("create")
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "mine"]
    assert "--accelerator-type=v4-8" in create
    archive, _, _ = commands("install")
    assert archive[:2] == ["git", "archive"]
    (run,) = commands("run", *FLAGS)
    assert "--worker=all" in run
    assert all(flag in run[-1] for flag in FLAGS)
    (delete,) = commands("delete")
    assert delete[:6] == ["gcloud", "compute", "tpus", "queued-resources", "delete", "mine"]


@pytest.mark.skipif(shutil.which("envsubst") is None, reason="gke.sh needs envsubst of gettext")
@pytest.mark.parametrize(("topology", "hosts"), [("2x4", 2), ("4x4", 4), ("16x16", 64)])
def test_a_gke_job_has_a_pod_for_each_host(topology, hosts):
    odd = "--config.data.root=/a folder, with: signs"
    ended = dry_run(
        "bash", LAUNCH / "gke.sh", "run", *FLAGS, odd,
        IMAGE="registry/image:1", TOPOLOGY=topology, SLICES="2",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "${" not in ended.stdout
    (job,) = yaml.safe_load_all(ended.stdout)
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (slices,) = job["spec"]["replicatedJobs"]
    assert slices["replicas"] == 2
    work = slices["template"]["spec"]
    assert (work["parallelism"], work["completions"]) == (hosts, hosts)
    pod = work["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "experiments.train"]
    assert container["args"] == [*FLAGS, odd]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}


def test_what_gke_cannot_be_given_is_refused():
    ended = dry_run("bash", LAUNCH / "gke.sh", "run", '--config.data.root="x"', IMAGE="image")
    assert ended.returncode == 2
    assert "cannot be passed on" in ended.stderr


def test_the_rehearsal_numbers_its_processes():
    ended = dry_run(
        sys.executable, LAUNCH / "local_multiprocess.py", "--processes=2", "--devices=4",
        "--dry_run", "--", "python", "-m", "experiments.train", *FLAGS,
    )  # fmt: skip
    first, second = ended.stdout.splitlines()
    assert "--xla_force_host_platform_device_count=4" in first
    assert "--process_index=0" in first
    assert "--process_index=1" in second

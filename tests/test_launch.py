"""Launch scripts: what they would start, by their dry runs."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml

from spectral_jax.training import distributed
from spectral_jax.training.config import ConfigError

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


def slurm_gpus(processes_a_node, gpus_a_node, local, visible="", node=0, nodes=2):
    environment = {
        "SLURM_STEP_ID": "0",
        "SLURM_GPUS_ON_NODE": str(gpus_a_node),
        "SLURM_STEP_TASKS_PER_NODE": f"{processes_a_node}(x{nodes})",
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        "CUDA_VISIBLE_DEVICES": visible,
    }
    return distributed.slurm_gpus(environment)


def test_a_process_has_its_share_of_a_nodes_gpus():
    eight = "0,1,2,3,4,5,6,7"
    assert slurm_gpus(1, 8, local=0, visible=eight) == []  # all
    assert slurm_gpus(1, 8, local=0, node=1) == []
    assert [slurm_gpus(8, 8, local, eight) for local in range(8)] == [[i] for i in range(8)]
    assert slurm_gpus(2, 8, local=1, visible=eight) == [4, 5, 6, 7]
    assert slurm_gpus(8, 8, local=3, visible="3") == []  # Slurm shows it no other
    with pytest.raises(ConfigError, match="3 processes for 8 GPUs"):
        slurm_gpus(3, 8, local=0, visible=eight)
    uneven = {"SLURM_STEP_ID": "0", "SLURM_GPUS_ON_NODE": "4", "SLURM_LOCALID": "0"}
    for node, mine in enumerate(([0, 1], [0, 1], [])):
        tasks = {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": str(node)}
        assert distributed.slurm_gpus(uneven | tasks) == mine
    assert distributed.slurm_gpus({"SLURM_STEP_ID": "0"}) is None  # no GPUs: JAX chooses
    assert distributed.slurm_gpus({"SLURM_GPUS_ON_NODE": "8"}) is None  # outside of srun


@pytest.mark.parametrize(
    ("nodes", "processes_a_node", "visible"), [(2, 1, ["all", "all"]), (1, 2, ["0,1", "2,3"])]
)
def test_jax_is_told_which_gpus_are_a_processs_own(nodes, processes_a_node, visible):
    program = (
        "import jax; from spectral_jax.training import distributed; distributed.start(); "
        "print(jax.process_count(), jax.config.values['jax_cuda_visible_devices'])"
    )
    shared = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "SLURM_JOB_ID": str(os.getpid()),  # JAX makes the port of it
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_STEP_TASKS_PER_NODE": f"{processes_a_node}(x{nodes})",
        "CUDA_VISIBLE_DEVICES": "0,1,2,3",
    }
    processes = []
    for index in range(2):
        node, local = divmod(index, processes_a_node)
        mine = {"SLURM_PROCID": index, "SLURM_LOCALID": local, "SLURM_NODEID": node}
        mine = {key: str(value) for key, value in mine.items()}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", program],
                env=shared | mine,
                cwd=LAUNCH.parent,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert said == [f"2 {gpus}" for gpus in visible]


def test_a_tpu_slice_from_nothing_to_nothing():
    def commands(*arguments):
        ended = dry_run("bash", LAUNCH / "tpu_pod.sh", *arguments, TPU_NAME="mine", TPU_TYPE="v4-8")
        assert ended.returncode == 0, ended.stderr
        return [shlex.split(line) for line in ended.stdout.splitlines()]

    (create,) = commands("create")
    assert create[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "mine"]
    assert "--accelerator-type=v4-8" in create
    archive, _, install = commands("install")
    assert archive[:2] == ["git", "archive"]
    # the image's own Python is too old
    assert "uv venv -q --clear --python '>=3.11,<3.14' env" in install[-1]
    assert "./spectral_jax[tpu,demo,gcs]" in install[-1]
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

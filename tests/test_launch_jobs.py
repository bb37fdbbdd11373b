"""launch/gke.yaml and launch/slurm.sbatch, played through with stubs of the clusters' commands.

The stubs stand for what decides when a job starts again: JobSet's failure policy, SLURM's queue.
"""

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from flaxclip.exit_codes import PREEMPTED, TRAINING_FAILED

ROOT = Path(__file__).parents[1]
MANIFEST = ROOT / "launch" / "gke.yaml"
SCHEMA = ROOT / "tests" / "golden" / "launch" / "jobset_v1alpha2.schema.json.gz"

# Trains as the plan says: one exit code a start of the job, the same in all its processes.
PYTHON = r"""#!/bin/bash
printf '%s\n' "XLA_FLAGS=$XLA_FLAGS" "CACHE=$JAX_COMPILATION_CACHE_DIR" "$@" >> "$STUB/processes"
exit "$(sed -n "$(cat "$STUB/start")p" "$STUB/plan")"
"""
SRUN = r"""#!/bin/bash
echo "srun $*" >> "$STUB/calls"
while [[ $1 == --* ]]; do shift; done
code=0
for ((task = 0; task < SLURM_NTASKS; task++)); do "$@" || code=$?; done
exit $code
"""
SCONTROL = r"""#!/bin/bash
echo "scontrol $*" >> "$STUB/calls"
touch "$STUB/requeued"
"""
# Runs the script at once, as often as it is put back into the queue.
SBATCH = r"""#!/bin/bash
echo "sbatch $*" >> "$STUB/calls"
[[ $1 == --nodes ]] && nodes=$2 && shift 2
export SLURM_JOB_ID=7 SLURM_NTASKS=$((nodes * $(sed -n 's/#SBATCH --ntasks-per-node=//p' "$1")))
for ((start = 1; ; start++)); do
  echo $start > "$STUB/start"
  rm -f "$STUB/requeued"
  bash "$@" >> "$STUB/log"; code=$?
  [[ -e $STUB/requeued ]] || exit $code
done
"""


class Cluster:
    """A folder with a cluster's commands in it, and with what they were asked."""

    def __init__(self, folder: Path, plan: list[int], **commands: str):
        self.folder = folder
        (folder / "plan").write_text("\n".join(map(str, plan)))
        (folder / "bin").mkdir()
        for name, text in commands.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))} | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "STUB": str(folder),
        }

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            shlex.split(command),
            cwd=ROOT,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )

    def processes(self) -> list[list[str]]:
        """Arguments of each process that trained, behind its XLA flags and compilation cache."""
        text = (self.folder / "processes").read_text()
        return [part.splitlines() for part in re.split(r"(?m)^(?=XLA_FLAGS=)", text)[1:]]


# Exit codes of one start after another, and of the whole.
LIVES = [
    ([PREEMPTED, 137, 0], 0),  # told to stop; a host killed; finished
    ([PREEMPTED, TRAINING_FAILED], TRAINING_FAILED),
    ([2], 2),
]


@pytest.mark.parametrize(("plan", "code"), LIVES)
def test_slurm_starts_again_what_was_preempted_and_nothing_else(tmp_path, plan, code):
    cluster = Cluster(tmp_path, plan, python=PYTHON, srun=SRUN, scontrol=SCONTROL, sbatch=SBATCH)
    run = "datacomp_medium --data.path '/data/{0..9} a*.tar' --workdir /runs/medium"
    done = cluster.run(f"sbatch --nodes 2 launch/slurm.sbatch {run}")
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls.count("scontrol requeue 7") == len(plan) - 1
    processes = cluster.processes()
    assert len(processes) == 2 * 8 * len(plan)
    for flags, cache, *words in processes:
        assert "--xla_gpu_enable_latency_hiding_scheduler=true" in flags
        assert cache == "CACHE=/runs/medium/compiled"
        assert words == ["-m", "flaxclip.train", *shlex.split(run)]


def test_this_xla_knows_the_flags(tmp_path):
    """It ends a process that has a flag which it does not know, whatever it runs on."""
    cluster = Cluster(tmp_path, [0], python=PYTHON)
    (tmp_path / "start").write_text("1")
    assert cluster.run("bash launch/run.sh gpu quickstart").returncode == 0
    ((flags, *_),) = cluster.processes()
    code = "import jax; jax.devices()"
    for more, works in (("", True), (" --xla_gpu_no_such_flag=1", False)):
        env = os.environ | {"XLA_FLAGS": flags.removeprefix("XLA_FLAGS=") + more}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) == works, done.stderr


def job_sets() -> dict[str, dict]:
    documents = yaml.safe_load_all(MANIFEST.read_text())
    return {d["metadata"]["labels"]["hardware"]: d for d in documents if d["kind"] == "JobSet"}


@pytest.mark.parametrize("hardware", ["tpu", "gpu"])
def test_the_manifest_is_a_job_set(hardware):
    schema = json.loads(gzip.decompress(SCHEMA.read_bytes()))
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(job_sets()[hardware])
    spoilt = yaml.safe_load(MANIFEST.read_text().split("---")[0])
    spoilt["spec"]["failurePolicy"]["maxRestart"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        validator.validate(spoilt)


@pytest.mark.parametrize(
    ("hardware", "plan", "code"),
    [*(("tpu", *life) for life in LIVES), ("gpu", [PREEMPTED, 0], 0)],
)
def test_kubernetes_starts_again_what_was_preempted_and_nothing_else(
    tmp_path, hardware, plan, code
):
    kubectl = f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/helpers/stub_kubectl.py "$@"\n'
    cluster = Cluster(tmp_path, plan, python=PYTHON, kubectl=kubectl)
    # As the manifest's head says.
    commands = re.findall(r"(?m)^#   (kubectl .*?)(?:  +#.*)?$", MANIFEST.read_text())
    apply, *others = [command.replace("tpu", hardware) for command in commands]
    assert len(others) == 3
    assert cluster.run(apply).returncode == (1 if code else 0)
    for command in others:
        assert cluster.run(command).returncode == 0
    hosts = {"tpu": 4, "gpu": 2}[hardware]
    processes = cluster.processes()
    assert len(processes) == hosts * len(plan)
    for flags, cache, module, name, experiment, *_ in processes:
        assert ("--xla_gpu" in flags) == (hardware == "gpu")
        assert cache == "CACHE=gs://BUCKET/runs/medium/compiled"
        assert (module, name) == ("-m", "flaxclip.train")
        assert (ROOT / "experiments" / f"{experiment}.py").exists()

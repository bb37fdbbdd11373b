"""launch/tpu_vm.sh against a cloud of folders, through whole lives; its dry runs, word for word."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "launch" / "tpu_vm.sh"
SLICE = ("--name", "clip", "--zone", "us-west4-a", "--type", "v5litepod-8")
RUN = ("medium", "--data.path", "gs://bucket/{0..9} a*.tar", "--workdir", "/shared/medium")

# A host's own commands. Its `python` trains: it does what the plan says of its n-th start.
PYTHON3 = "#!/bin/sh\nexit 0\n"
UV = r"""#!/bin/bash
case "$1 $2" in
  "venv "*) mkdir -p venv/bin; ln -s "$(dirname "$0")/train" venv/bin/python
            echo 'PATH=$HOME/venv/bin:$PATH' > venv/bin/activate ;;
  "pip install") grep -q '^jax==' flaxclip/launch/constraints.txt && [ "$VIRTUAL_ENV" = venv ] ;;
esac
"""
TRAIN = r"""#!/bin/bash
host=$(basename "$HOME")
run=$(cat "$STUB_CLOUD/runs.$host" 2> /dev/null || echo 0)
echo $((run + 1)) > "$STUB_CLOUD/runs.$host"
printf '%s\n' "$JAX_COMPILATION_CACHE_DIR" "$PWD" "$@" > "$STUB_CLOUD/run.$host.$run"
echo "loss of run $run"
fate=$(sed -n "$((run + 1))p" "$STUB_CLOUD/plan")
case $fate in
  [0-9]*) exit "$fate" ;;
  preempted) touch "$STUB_CLOUD/suspended"; exec sleep 60 ;;
  first_host_fails) [ "$host" = 0 ] && exit 3; trap 'kill $!; exit 3' TERM; sleep 60 & wait ;;
  until_told) trap 'kill $!; exit 75' TERM; sleep 60 & wait ;;
esac
"""


class Cloud:
    def __init__(self, folder: Path, *plan: str):
        self.folder = folder
        (folder / "plan").write_text("\n".join(plan))
        bin_ = folder / "bin"
        bin_.mkdir()
        gcloud = f'#!/bin/sh\nexec {sys.executable} -S {ROOT}/tests/helpers/stub_gcloud.py "$@"\n'
        commands = {"python3": PYTHON3, "uv": UV, "train": TRAIN, "gcloud": gcloud}
        for name, text in commands.items():
            (bin_ / name).write_text(text)
            (bin_ / name).chmod(0o755)
        self.env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {
            "PATH": f"{bin_}:{os.environ['PATH']}",
            "STUB_CLOUD": str(folder),
        }

    def launch(self, step: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SCRIPT, step, *SLICE, "--poll", "0.1", *options],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def calls(self) -> list[str]:
        """What was asked of the cloud, in order, without looking."""
        verbs = []
        for line in (self.folder / "calls").read_text().splitlines():
            words = shlex.split(line)
            what = words[4]
            if what == "ssh":
                what = words[-1].split()[2] if "on_tpu_host" in words[-1] else words[-1].split()[0]
            if what not in ("describe", "status"):
                verbs.append(what)
        return verbs

    def run(self, host: int, number: int) -> list[str]:
        return (self.folder / f"run.{host}.{number}").read_text().splitlines()


SET_UP = ["create", "scp", "mkdir", "install", "start"]


def test_a_whole_life_saved_restarted_preempted_rebuilt_finished_deleted(tmp_path):
    cloud = Cloud(tmp_path, "75", "137", "preempted", "0")
    (tmp_path / "sshd_slow").touch()
    done = cloud.launch("up", "--spot", "--", *RUN)
    assert done.returncode == 0, done.stderr
    assert cloud.calls() == [
        *["create", "scp", "mkdir", "mkdir", "install", "start"],  # the first ssh is refused
        *["start", "start"],
        "delete",
        *SET_UP,
        "delete",
    ]
    for host in (0, 1):
        for number in range(4):
            cache, folder, *words = cloud.run(host, number)
            assert words == ["-m", "flaxclip.train", *RUN]
            assert cache == "/shared/medium/compiled"
            assert folder == f"{tmp_path}/hosts/{host}/flaxclip"
    assert not list((tmp_path / "hosts").glob("*"))
    assert "machines: WAITING (WAITING_FOR_RESOURCES)" in done.stderr
    assert "the run ended with exit code 75; starting it again" in done.stderr
    assert "machines: GONE (SUSPENDED); asking for new ones" in done.stderr


@pytest.mark.parametrize("code", [2, 3])
def test_a_run_that_would_fail_again_is_not_started_again(tmp_path, code):
    cloud = Cloud(tmp_path, str(code))
    done = cloud.launch("up", "--", *RUN)
    assert done.returncode == code
    assert cloud.calls() == [*SET_UP, "tail"]
    assert "loss of run 0" in done.stdout
    assert "the machines are still there" in done.stderr


def test_its_code_is_that_of_the_host_that_has_failed_though_others_run_still(tmp_path):
    cloud = Cloud(tmp_path, "first_host_fails")
    done = cloud.launch("up", "--", *RUN)
    assert "the run ended with exit code 3 running" in done.stderr
    assert done.returncode == 3
    assert cloud.launch("stop").returncode == 0


def test_machines_are_not_thrown_away_for_a_question_that_failed(tmp_path):
    cloud = Cloud(tmp_path, "0")
    for step in ("create", "copy", "install"):
        assert cloud.launch(step).returncode == 0
    assert cloud.launch("start", "--", *RUN).returncode == 0
    (tmp_path / "network_down").touch()
    assert cloud.launch("watch", "--", *RUN).returncode == 0
    assert cloud.calls() == SET_UP


def test_starting_again_has_an_end(tmp_path):
    cloud = Cloud(tmp_path, *["75"] * 9)
    done = cloud.launch("up", "--restarts", "2", "--", *RUN)
    assert done.returncode == 1
    assert cloud.calls() == [*SET_UP, "start", "start"]


def test_machines_that_cannot_be_had_end_it(tmp_path):
    cloud = Cloud(tmp_path)
    (tmp_path / "no_quota").touch()
    done = cloud.launch("up", "--on-demand", "--", *RUN)
    assert done.returncode == 1
    assert "quota exceeded" in done.stderr
    assert cloud.calls() == ["create"]


def test_status_follows_a_run_that_is_told_to_stop(tmp_path):
    cloud = Cloud(tmp_path, "until_told")
    for step in ("create", "copy", "install"):
        cloud.launch(step, "--slices", "2")
    cloud.launch("start", "--slices", "2", "--", *RUN)
    status = wait_for(cloud, "running")
    assert "machines: READY (ACTIVE)" in status
    assert cloud.launch("stop").returncode == 0
    wait_for(cloud, "75")
    assert len(list((tmp_path / "hosts").glob("*/run.log"))) == 4
    cloud.launch("delete")
    assert "GONE (not found)" in cloud.launch("status").stdout


def wait_for(cloud: Cloud, state: str) -> str:
    for _ in range(100):
        status = cloud.launch("status").stdout
        if status.splitlines()[1] == f"run: {state}":
            return status
    raise AssertionError(status)


def test_a_new_checkout_leaves_local_runs_alone(tmp_path):
    cloud = Cloud(tmp_path, "0")
    cloud.launch("create")
    cloud.launch("copy")
    checkout = tmp_path / "hosts" / "0" / "flaxclip"
    (checkout / "runs").mkdir()
    (checkout / "stale.py").touch()
    cloud.launch("copy")
    assert (checkout / "runs").exists()
    assert not (checkout / "stale.py").exists()
    assert (checkout / "flaxclip" / "train.py").exists()


DRY_RUNS = {
    "spot": ("up", "--spot", "--", *RUN),
    "two_slices": ("up", "--slices", "2", "--project", "mine", "--", *RUN),
    "on_demand": ("up", "--on-demand", "--", *RUN),
}


@pytest.mark.parametrize("name", DRY_RUNS)
def test_dry_runs_print_the_commands_that_are_recorded(name):
    step, *options = DRY_RUNS[name]
    done = subprocess.run(
        [SCRIPT, step, *SLICE, "--dry-run", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    commands = [line.rstrip() for line in done.stdout.splitlines() if line.startswith("gcloud")]
    recorded = ROOT / "tests" / "golden" / "launch" / f"tpu_vm_{name}.txt"
    assert commands == recorded.read_text().splitlines()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("up", *SLICE), "up needs arguments of flaxclip.train after --"),
        (("create", "--name", "clip"), "--zone is missing"),
        (("create", *SLICE, "--slice", "2"), "unknown option --slice"),
        (("create", *SLICE, "--slices", "0"), "--slices is 0"),
        (("create", *SLICE, "--slices", "2", "--on-demand"), "no --on-demand"),
        (("fly", *SLICE), "unknown step fly"),
        (("create", *SLICE[:-1], "abacus-8"), "which image goes with abacus-8"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_asked_for(words, message):
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr

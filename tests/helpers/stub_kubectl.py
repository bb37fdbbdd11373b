"""`kubectl` of a cluster that plays job sets at once: all pods, and the failure policy over them.

In the folder $STUB: `calls`, what was asked; `start`, the number of the start that is played.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

STUB = Path(os.environ["STUB"])


def apply(manifest: Path, label: str) -> int:
    name, _, value = label.partition("=")
    (job_set,) = (
        document
        for document in yaml.safe_load_all(manifest.read_text())
        if document["kind"] == "JobSet" and document["metadata"]["labels"][name] == value
    )
    policy = job_set["spec"]["failurePolicy"]
    for start in range(1, policy["maxRestarts"] + 2):
        (STUB / "start").write_text(str(start))
        failed = {reason for job in job_set["spec"]["replicatedJobs"] for reason in failures(job)}
        if not failed:
            return 0
        for rule in policy["rules"]:
            if failed.intersection(rule["onJobFailureReasons"]):
                assert rule["action"] == "FailJobSet"
                return 1
    return 1


def failures(job: dict) -> list[str]:
    """Why jobs of this template fail; nothing where they succeed."""
    spec = job["template"]["spec"]
    assert spec["completions"] == spec["parallelism"]
    (container,) = spec["template"]["spec"]["containers"]
    dockerfile = Path("launch/Dockerfile").read_text()
    (entry,) = re.findall(r"(?m)^ENTRYPOINT (.*)$", dockerfile)
    codes = {
        subprocess.run(json.loads(entry) + container["args"], check=False).returncode
        for _ in range(job["replicas"] * spec["parallelism"])
    }
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["containerName"] == container["name"]
    hopeless = codes.intersection(rule["onExitCodes"]["values"])
    return ["PodFailurePolicy" if hopeless else "BackoffLimitExceeded"] * any(codes)


if __name__ == "__main__":
    words = sys.argv[1:]
    with (STUB / "calls").open("a") as calls:
        print(shlex.join(["kubectl", *words]), file=calls)
    if words[0] == "apply":
        sys.exit(apply(Path(words[words.index("-f") + 1]), words[words.index("-l") + 1]))

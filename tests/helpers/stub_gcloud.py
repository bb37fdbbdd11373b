"""A cloud in a folder, as `gcloud compute tpus` shows it: a machine is a folder, ssh a shell in it.

Run as gcloud, with STUB_CLOUD naming the folder; every call is appended to its `calls`. The plan of
a machine's fate is kept by `stub_host`'s training: a file `suspended` means that it was preempted.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ["STUB_CLOUD"])


def option(words: list[str], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def host_homes() -> list[Path]:
    return sorted((CLOUD / "hosts").glob("*"))


def create(words: list[str]) -> int:
    if (CLOUD / "no_quota").exists():
        return complain("ERROR: quota exceeded")
    if host_homes():
        return complain("ERROR: ALREADY_EXISTS")
    for host in range(2 * int(option(words, "--node-count") or 1)):
        (CLOUD / "hosts" / str(host)).mkdir(parents=True)
    (CLOUD / "waiting").touch()
    return 0


def describe(words: list[str]) -> int:
    if (CLOUD / "network_down").exists():
        (CLOUD / "network_down").unlink()
        return complain("ERROR: could not reach the server")
    if not host_homes():
        return complain("ERROR: (gcloud) NOT_FOUND: no such resource")
    if (CLOUD / "waiting").exists():
        (CLOUD / "waiting").unlink()
        print("WAITING_FOR_RESOURCES")
    elif (CLOUD / "suspended").exists():
        print("SUSPENDED")
    else:
        print("READY" if "tpu-vm" in words else "ACTIVE")
    return 0


def ssh(words: list[str]) -> int:
    homes = host_homes() if option(words, "--worker") == "all" else host_homes()[:1]
    if (CLOUD / "sshd_slow").exists():
        (CLOUD / "sshd_slow").unlink()
        return complain("ERROR: connection refused")
    codes = [
        subprocess.run(
            ["bash", "-c", option(words, "--command")],
            cwd=home,
            env=os.environ | {"HOME": str(home)},
            check=False,
        ).returncode
        for home in homes
    ]
    return max(codes)


def scp(words: list[str]) -> int:
    source, target = (word for word in words if word.endswith("flaxclip.tgz"))
    for home in host_homes():
        shutil.copy(source, home / target.partition(":")[2])
    return 0


def delete(words: list[str]) -> int:
    for home in host_homes():
        pid = home / "run.pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGKILL)
            while pid.exists():  # whoever waits for it still writes into the folder
                time.sleep(0.01)
        shutil.rmtree(home)
    (CLOUD / "suspended").unlink(missing_ok=True)
    return 0


def complain(message: str) -> int:
    print(message, file=sys.stderr)
    return 1


def main() -> int:
    words = sys.argv[1:]
    with (CLOUD / "calls").open("a") as calls:
        print(shlex.join(["gcloud", *words]), file=calls)
    verbs = {f.__name__: f for f in (create, describe, ssh, scp, delete)}
    assert words[:2] == ["compute", "tpus"]
    return verbs[words[3]](words)


if __name__ == "__main__":
    sys.exit(main())

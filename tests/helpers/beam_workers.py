"""The worker processes that a command has Apache Beam start on this machine."""

import pathlib


def workers_of(launcher: int) -> list[int]:
    """Their process numbers."""
    workers = []
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"flaxclip.data.prepare.beam_worker" in words and str(launcher).encode() in words:
            workers.append(int(folder.name))
    return workers

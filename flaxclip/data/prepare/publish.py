"""Claim the folder of a prepared corpus, and give a new corpus its final names.

A folder is in one of four states: empty; in preparation, with a plan in `_preparing`; finished,
with a datasheet; or foreign, which is never touched. Files that are to be replaced stay until their
replacements are complete.
"""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from flaxclip.data.prepare.folder import DATASHEET, PreparationFolder, write_whole
from flaxclip.data.prepare.scan import SPLITS
from flaxclip.data.prepare.write_shards import ShardReport
from flaxclip.errors import InputError

_PLAN, _MOVES, _REMOVED = "plan.json", "moves.json", "removed"
Plan = Mapping[str, Any]
"""All that the output depends on, as JSON."""


@contextlib.contextmanager
def claim(folder: PreparationFolder, plan: Plan, overwrite: bool) -> Iterator[bool]:
    """Hold the folder for this preparation, new or resumed.

    Yields:
        True if it is finished already, so that there is nothing to do.

    Raises:
        InputError: the folder cannot be written, is foreign, belongs to another preparation
            and may not be overwritten, or another process is at work in it.
    """
    work = folder.work
    sheet, at_work = _read(epath.Path(folder.dst) / DATASHEET), _read(work / _PLAN)
    if sheet is None and not work.exists():
        _check_empty(folder.dst)
    if sheet is not None and not overwrite:
        _check_same(folder.dst, "a corpus", sheet["plan"], plan)
        _check_whole(folder.dst, sheet)
        if (work / _REMOVED).exists():  # killed at the very end
            work.rmtree()
        yield True
        return
    if at_work is not None and not overwrite:
        _check_same(folder.dst, "an unfinished corpus", at_work, plan)
    with _lock(folder):
        if at_work != plan:
            _discard(folder)
            write_whole(work / _PLAN, json.dumps(plan).encode())
        # What a killed process was writing; it takes room.
        for leftover in (work / "shards").glob("tmp*"):
            leftover.rmtree()
        (work / "shards").mkdir(parents=True, exist_ok=True)
        yield False


def name_shards(
    folder: PreparationFolder, shards: Mapping[str, int]
) -> dict[str, list[tuple[epath.Path, str, ShardReport]]]:
    """The shards of each split: paths, final names and reports.

    Shards without an example are left out.
    """
    splits = {}
    for split in SPLITS:
        filled = [
            (path, report)
            for path, report in folder.read_reports(split, shards.get(split, 0))
            if report.pairs
        ]
        if filled:
            splits[split] = [
                (path, f"{split}-{number:05}-of-{len(filled):05}.array_record", report)
                for number, (path, report) in enumerate(filled)
            ]
    return splits


def publish(
    folder: PreparationFolder, moves: Sequence[tuple[epath.Path, str]], others: Mapping[str, bytes]
) -> None:
    """Give all files their final names, and remove those that they replace.

    Args:
        folder: claimed.
        moves: from where, and the name it gets.
        others: contents of further files, by name, the last of which says that all is there.
    """
    dst, work = epath.Path(folder.dst), folder.work
    if not (work / _MOVES).exists():
        write_whole(work / _MOVES, json.dumps([name for _, name in moves]).encode())
    if not (work / _REMOVED).exists():
        old = _read(dst / DATASHEET)
        if old is not None:
            # The datasheet last: until it is gone, this can be done again.
            for name in (*_files(old), DATASHEET):
                (dst / name).unlink(missing_ok=True)
        write_whole(work / _REMOVED, b"")
    for path, name in moves:
        if path.exists():
            path.rename(dst / name)
    for name, contents in others.items():
        write_whole(dst / name, contents)
    # Without a plan the rest is rubbish, whenever it is seen to go.
    (work / _PLAN).unlink()
    work.rmtree()


def _discard(folder: PreparationFolder) -> None:
    """Remove an unfinished preparation, with the files that it has already moved to their place."""
    names = _read(folder.work / _MOVES)
    if names is not None and (folder.work / _REMOVED).exists():
        for name in names:
            (epath.Path(folder.dst) / name).unlink(missing_ok=True)
    for path in folder.work.iterdir():
        if path.name != "lock":
            path.rmtree() if path.is_dir() else path.unlink()


def _files(sheet: Mapping[str, Any]) -> list[str]:
    shards = [shard["file"] for split in sheet["splits"].values() for shard in split["shards"]]
    return [*shards, *sheet["files"]]


def _check_whole(dst: str, sheet: Mapping[str, Any]) -> None:
    for split in sheet["splits"].values():
        for shard in split["shards"]:
            path = epath.Path(dst) / shard["file"]
            found = path.stat().length if path.exists() else None
            if found != shard["bytes"]:
                state = "missing" if found is None else f"{found:,} bytes, not {shard['bytes']:,}"
                raise InputError(
                    f"{dst} is prepared, but {shard['file']} is {state}\n"
                    "prepare it again with --overwrite, or give the shard back"
                )


def _check_empty(dst: str) -> None:
    path = epath.Path(dst)
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(
                f"{dst} is there, and not made by flaxclip.data.prepare\n"
                "name a folder that is new or empty; this one is left as it is"
            )
    except OSError as error:
        raise InputError(f"cannot read {dst}: {error.strerror}") from None


def _check_same(dst: str, what: str, there: Plan, plan: Plan) -> None:
    differing = sorted(_differing(there, plan))
    if differing:
        raise InputError(
            "\n".join(
                [
                    f"{dst} holds {what} that was prepared otherwise",
                    *differing,
                    "name another folder, or replace this one with --overwrite",
                ]
            )
        )


def _differing(there: Any, ours: Any, name: str = "") -> Iterator[str]:
    if isinstance(there, Mapping) and isinstance(ours, Mapping):
        for key in {**there, **ours}:
            yield from _differing(there.get(key), ours.get(key), f"{name}.{key}".strip("."))
    elif there != ours:
        yield f"{name}: {there} there, {ours} now"


def _read(path: epath.Path) -> Any:
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        raise InputError(
            f"{path} is damaged\ndelete it, or its folder, and prepare again"
        ) from None


@contextlib.contextmanager
def _lock(folder: PreparationFolder) -> Iterator[None]:
    if "://" in folder.dst:  # only a file system shows whether the holder is alive
        yield
        return
    path = folder.work / "lock"
    write_whole(folder.work / "reachable", b"")  # or an error that says why not
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is at work in {folder.dst}\nwait for it, or stop it"
            ) from None
        yield

"""A workdir belongs to one run, and to one process group of that run at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from flaxclip.checkpoint import CONFIG_FILE
from flaxclip.config import TrainConfig, differing_fields
from flaxclip.config_json import from_json, to_json
from flaxclip.data.source import Source
from flaxclip.errors import InputError
from flaxclip.provenance import data_fingerprint


def claim_workdir(config: TrainConfig, may_change: Sequence[str] = ()) -> None:
    """Write `config.json` into the workdir, or check that the one there is of the same run.

    In the fields, or groups of them, named in `may_change`, `config` may differ from the one there
    and then takes its place.

    Raises:
        InputError: the workdir cannot be written, or belongs to a run with another configuration.
    """
    path = epath.Path(config.workdir) / CONFIG_FILE
    try:
        if path.exists():
            differing = differing_fields(config, from_json(TrainConfig, path.read_text(), path))
            refused = [name for name in differing if not _covered(name, may_change)]
            if refused:
                raise InputError(
                    "\n".join(
                        [
                            f"{config.workdir} holds a run with another configuration",
                            *(f"{name}: {differing[name]}" for name in refused),
                            "use another --workdir, or the configuration it was started with; or "
                            f"change this run with --resume-with-changes {' '.join(refused)}",
                        ]
                    )
                )
            if not differing:
                return
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            # By a rename, so that other hosts see no file or all of it.
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(to_json(config))
            unfinished.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write into workdir {config.workdir}: {error.strerror or error}\n"
            "name a folder that can be created and written with --workdir"
        ) from None


def check_same_data(
    source: Source, saved: Mapping[str, Any], step: int, may_change: Sequence[str] = ()
) -> None:
    """Raise `InputError` unless `source` is what the run has learned from up to `step`.

    `saved` is the record of the run in that step's checkpoint.
    """
    ours, theirs = data_fingerprint(source), saved["data"]
    if ours != theirs and "data" not in may_change:
        records = theirs["records"]
        raise InputError(
            f"the data is not what this run has learned from up to step {step}\n"
            + (
                f"{records:,} records then, {len(source):,} now"
                if records != len(source)
                else f"{records:,} records then and now, but under other names or in another order"
            )
            + "\nthe order of the records would change; give back the shards as they were, "
            "or go on with --resume-with-changes data"
        )


def _covered(name: str, may_change: Sequence[str]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in may_change)

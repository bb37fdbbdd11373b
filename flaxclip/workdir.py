"""A workdir belongs to one run, and to one process group of that run at a time."""

import jax
from etils import epath

from flaxclip.checkpoint import CONFIG_FILE
from flaxclip.config import TrainConfig, differing_fields
from flaxclip.config_json import from_json, to_json
from flaxclip.errors import InputError


def claim_workdir(config: TrainConfig) -> None:
    """Write `config.json` into the workdir, or check that the one there is of the same run.

    Raises:
        InputError: the workdir cannot be written, or belongs to a run with another configuration.
    """
    path = epath.Path(config.workdir) / CONFIG_FILE
    try:
        if path.exists():
            theirs = from_json(TrainConfig, path.read_text(), path)
            if differing := differing_fields(config, theirs):
                raise InputError(
                    "\n".join(
                        [
                            f"{config.workdir} holds a run with another configuration",
                            *differing,
                            "use another --workdir, or the configuration it was started with",
                        ]
                    )
                )
        elif jax.process_index() == 0:
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

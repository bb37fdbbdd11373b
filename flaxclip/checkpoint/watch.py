"""Checkpoints of a run that may be going on elsewhere, one after the other as they land."""

import time
from collections.abc import Callable

from flaxclip.checkpoint.layout import load_config, saved_steps
from flaxclip.errors import InputError

POLL_SECONDS = 10.0


def watch(
    workdir: str,
    measure: Callable[[int], object],
    after: Callable[[], object],
    poll: float = POLL_SECONDS,
) -> None:
    """Call `measure` with each step that has a checkpoint, ascending, until the run's last one.

    Only reads the run's folder: the run may go on in another process, or on another machine. A
    checkpoint that it deletes before or while it is measured is passed over, by name. Steps that
    were measured before are offered again: `measure` keeps their results. `after` is called
    whenever all steps that are there have been measured, to draw curves of them.

    Raises:
        InputError: there is no run in `workdir`, or a step cannot be measured for a reason other
            than its being gone.
    """
    last = load_config(workdir).get("steps", int)
    seen: set[int] = set()
    while True:
        fresh = [step for step in saved_steps(workdir) if step not in seen]
        for step in fresh:
            seen.add(step)
            try:
                measure(step)
            except (InputError, OSError, ValueError) as error:
                if step in saved_steps(workdir):
                    time.sleep(poll)  # one that is being deleted loses its files one by one
                if step in saved_steps(workdir):
                    raise
                print(f"step {step} was deleted before it was measured: {error}".splitlines()[0])
        if fresh:
            after()
        if last in seen:
            return
        if not fresh:
            time.sleep(poll)

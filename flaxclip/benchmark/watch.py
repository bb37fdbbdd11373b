"""Follow a run: measure each checkpoint as it lands, from another process or machine.

Only reads the run's folder, but for results. A checkpoint that the run deletes before or while it
is measured is passed over, by name.
"""

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

    Steps that were measured before are offered again: `measure` keeps their results. `after` is
    called whenever all steps that are there have been measured, to draw curves of them.

    Raises:
        InputError: there is no run in `workdir`, or a step cannot be measured for a reason other
            than its being gone.
    """
    last = load_config(workdir, "steps", int)
    seen: set[int] = set()
    while True:
        fresh = [step for step in saved_steps(workdir) if step not in seen]
        for step in fresh:
            seen.add(step)
            try:
                measure(step)
            except (InputError, OSError, ValueError) as error:
                if step in saved_steps(workdir):
                    raise
                print(f"step {step} was deleted before it was measured: {error}".splitlines()[0])
        if fresh:
            after()
        if last in seen:
            return
        if not fresh:
            time.sleep(poll)

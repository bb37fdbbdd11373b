"""What a profile holds."""

import jax


def profiled_steps(path):
    """Numbers of the steps whose annotation is in a profile."""
    return sorted(
        dict(event.stats)["step_num"]
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    )

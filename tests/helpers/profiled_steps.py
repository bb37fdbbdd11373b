"""What a profile holds."""

import warnings

import jax


def profiled_steps(path):
    """Numbers of the steps whose annotation is in a profile."""
    with warnings.catch_warnings():
        # jaxlib 0.12 makes a type that Python warns of; as an error it would abort the process.
        warnings.filterwarnings("ignore", "builtin type event_stats", DeprecationWarning)
        return sorted(
            dict(event.stats)["step_num"]
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        )

"""A port for a server that a test starts some seconds later."""

import random
import socket

_RANGE = range(20_000, 32_768)  # below those that the kernel gives to whoever asks for any


def free_port() -> int:
    """A port of this machine that nobody listens at, and that the kernel gives to nobody."""
    draw = random.SystemRandom()  # else as other processes draw, from the same seed
    while True:
        port = draw.choice(_RANGE)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port

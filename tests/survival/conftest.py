import pytest

from tests.survival.jobs import Job


@pytest.fixture(autouse=True)
def nothing_left_running():
    yield
    while Job.started:
        Job.started.pop().kill()

"""Who may join the Ray that `serving.cluster` starts: whoever has its token, and nobody else."""

import os
import subprocess
import sys

import pytest

from conftest import PROJECT
from ray_cluster import DEADLINE

HEAD = (
    "import sys; from serving import cluster; cluster.start_ray(); import ray; "
    "print(ray.get_runtime_context().gcs_address, flush=True); sys.stdin.read()"
)
# It looks for the head where that one is, which Ray by itself does on macOS and Windows only.
DRIVER = "import sys, ray; ray.init(sys.argv[1]); print('joined', ray.get(ray.remote(lambda: 7).remote()))"
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def python(code: str, *words: str, **environment: str) -> subprocess.Popen:
    """A program to which Ray is told nothing but this."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=PROJECT,
        env=others | LOOPBACK | {"RAY_USAGE_STATS_ENABLED": "0"} | environment,
    )


@pytest.mark.slow
def test_who_has_the_token_joins_and_nobody_else(ray_is_there):
    token, another = "a" * 64, "b" * 64
    started = [python(HEAD, RAY_AUTH_TOKEN=token)]
    try:
        address = started[0].stdout.readline().strip()
        started += [
            python(DRIVER, address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token),
            python(DRIVER, address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=another),
            python(DRIVER, address, RAY_AUTH_MODE="disabled"),
        ]
        friend, stranger, nobody = (driver.communicate(timeout=DEADLINE)[0] for driver in started[1:])
        assert "joined 7" in friend
        for refused in (stranger, nobody):
            assert "joined" not in refused
            assert "token-auth" in refused  # what it says leads there
        started[0].communicate(timeout=DEADLINE)
    finally:
        for process in started:
            process.kill()

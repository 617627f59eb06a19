"""The command for clusters, for tests that wait for what Ray does by itself.

`python tests/impatient_cluster.py` is `python -m serving.cluster`, but engines count as hung after
`HUNG_AFTER` seconds, Ray looks and decides more often than by its own settings, and each change of the
engines' states is a line of the output.
"""

import json
import os
import sys
import threading
import time

HUNG_AFTER = 5.0
TARGET = 15  # answers at a time that Ray wants in each engine


def states(**number: int) -> str:
    """The line that says how many engines are in which state."""
    return json.dumps(number, sort_keys=True)


def tell_states() -> None:
    """Print the states of the engines when they change, until the application is gone."""
    from ray import serve

    told = None
    while "Engine" in (there := serve.status().applications["chat"].deployments):
        line = states(**there["Engine"].replica_states)
        if line != told:
            print(line, flush=True)
            told = line
        time.sleep(0.1)


def impatient() -> None:
    """`serving.cluster`, but soon."""
    from serving import cluster

    cluster.set_environment()
    os.environ["RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
    os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"

    from ray import serve

    from serving import replicas

    replicas.HUNG_AFTER = HUNG_AFTER
    deployment, run = serve.deployment, serve.run

    def soon(*of, autoscaling_config: dict | None = None, **options):
        if autoscaling_config:
            delays = {"upscale_delay_s": 1, "downscale_delay_s": 2, "look_back_period_s": 2}
            options["autoscaling_config"] = autoscaling_config | delays | {"target_ongoing_requests": TARGET}
        return deployment(*of, health_check_period_s=1, **options)

    def run_and_tell(*of, **options):
        handle = run(*of, **options)
        threading.Thread(target=tell_states, daemon=True).start()
        return handle

    serve.deployment, serve.run = soon, run_and_tell
    cluster.main(sys.argv[1:])


if __name__ == "__main__":
    impatient()

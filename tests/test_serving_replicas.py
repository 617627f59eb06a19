"""What runs on a cluster: engines, ingresses, and answers on their way from one to the other."""

from types import SimpleNamespace

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("silent", "hangs"), [(0.0, False), (10_000.0, True)])
def test_a_hung_engine_is_not_healthy(ray_is_there, silent, hangs):
    import asyncio

    from serving.replicas import Engine

    replica = Engine.__new__(Engine)
    made = SimpleNamespace(silent=silent)
    replica._chat = SimpleNamespace(engine=SimpleNamespace(result=lambda: made), close=lambda: None)
    if hangs:
        with pytest.raises(RuntimeError, match="silent"):
            asyncio.run(replica.check_health())
    else:
        asyncio.run(replica.check_health())

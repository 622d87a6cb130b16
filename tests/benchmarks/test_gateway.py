"""The load and the sums of the gateway's benchmark."""

import asyncio

import pytest
from gateway import DIRECT, OURS, Found, steady, summary
from gateway_load import MockEngine, Target, closed_loop, many_streams, open_loop


def test_clients_and_mock_engines_agree() -> None:
    async def story() -> None:
        loop = asyncio.get_running_loop()
        servers = [await loop.create_server(MockEngine, "127.0.0.1", 0) for _ in range(2)]
        target = Target([server.sockets[0].getsockname()[1] for server in servers])
        times = await open_loop(target, 50.0, 0.5, 0)
        assert len(times) > 5
        assert all(0.005 < one.ttft_s < one.e2e_s for one in times)
        assert all(one.e2e_s > 0.19 for one in times)
        assert await closed_loop(target, 4, 100) > 0
        streams = await many_streams(target, 5, 10, 0.01)
        assert len(streams) == 5
        target.close()
        for server in servers:
            server.close()

    asyncio.run(asyncio.wait_for(story(), 30))


def found(added_s: float, tail_s: float) -> Found:
    made = Found({50: 0.005 + added_s}, {50: 0.005 + added_s + tail_s}, {50: 0.2 + added_s})
    made.cores, made.closed_rps, made.closed_us, made.events_per_core = {50: 0.1}, 5000, 90, 40_000
    return made


def test_what_a_router_adds_is_the_median_over_rounds() -> None:
    adds = (0.001, 0.002, 0.009)
    rounds = [{DIRECT: found(0, 0.001), OURS: found(added_s, 0.002)} for added_s in adds]
    assert all(map(steady, rounds))
    text = summary(rounds, [50])
    assert f"| {OURS} | 50 | +2.00 | +3.00 | +2.00 | 0.10 |" in text
    assert f"| {OURS} | 5000 | 90 | 40000 |" in text


@pytest.mark.parametrize(("tail_s", "good"), [(0.0014, True), (0.0016, False)])
def test_a_round_counts_if_direct_requests_are_steady(tail_s: float, good: bool) -> None:
    assert steady({DIRECT: found(0, tail_s), OURS: found(0, 1.0)}) is good

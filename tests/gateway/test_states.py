"""When the gateway takes a backend out, and when it is back."""

import asyncio

import pytest

from llmroute_gym.config import BreakerConfig, GatewayTimeouts, HealthConfig, RetryConfig
from tests.gateway.stage import (
    QUICK,
    RESTLESS,
    Answer,
    Behaviour,
    Engine,
    Stage,
    answer,
    break_off,
    hang,
    reset,
    run,
    status,
)

IMPATIENT = HealthConfig(interval_s=0.02, timeout_s=0.02)


def test_a_killed_backend_costs_only_its_streams_and_comes_back() -> None:
    async def story() -> None:
        engines = (Engine("a", step_s=0.02), Engine("b", step_s=0.02))
        async with Stage(*engines, health=QUICK) as stage:
            got: list[Answer] = []

            async def one() -> None:
                got.append(await stage.ask(stream=True, max_tokens=10))

            asked = []
            for index in range(80):
                asked.append(asyncio.create_task(one()))
                await asyncio.sleep(0.0125)
                if index == 30:
                    streams = stage.shared.backends[0].running
                    await engines[0].kill()
                if index == 50:
                    before = len(engines[0].requests)
                    await engines[0].start()
            await asyncio.gather(*asked)
            cut = [one for one in got if not one.done]
            assert all(one.status == 200 for one in got)
            assert 0 < len(cut) <= streams + 1
            assert all(not one.whole and b"upstream_error" in one.content for one in cut)
            assert len(engines[0].requests) > before
            assert stage.shared.backends[0].state.value == "up"

    run(story())


def test_a_backend_that_comes_back_gets_one_request_first() -> None:
    async def story() -> None:
        engine = Engine("a", well=False)
        async with Stage(engine, health=QUICK) as stage:
            assert (await stage.ask()).status == 503
            assert (await (await stage.client()).get("/ready")).status == 503
            engine.well, engine.behaviour = True, hang
            while stage.shared.backends[0].state.value != "trial":
                await asyncio.sleep(0.01)
            first = asyncio.create_task(stage.ask())
            while not engine.requests:
                await asyncio.sleep(0.01)
            assert (await stage.ask()).status == 503
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            engine.behaviour = answer
            while stage.shared.live:
                await asyncio.sleep(0.01)
            assert (await stage.ask()).status == 200
            assert stage.shared.backends[0].state.value == "up"

    run(story())


def test_probes_take_a_sick_backend_out() -> None:
    async def story() -> None:
        async with Stage(health=QUICK) as stage:
            stage.engines[0].well = False
            while stage.shared.backends[0].state.value == "up":
                await asyncio.sleep(0.01)
            for _ in range(10):
                assert (await stage.ask()).status == 200
            assert stage.engines[0].requests == []

    run(story())


def test_draining_backends_get_nothing_new() -> None:
    async def story() -> None:
        async with Stage() as stage:
            got = await stage.admin("/backends/a/drain", "POST")
            assert b'"draining": true' in got
            for _ in range(5):
                assert (await stage.ask()).status == 200
            assert stage.engines[0].requests == []
            await stage.admin("/backends/a/resume", "POST")
            for _ in range(5):
                await stage.ask()
            assert len(stage.engines[0].requests) > 0
            assert b'"state": "up"' in await stage.admin("/backends")
            assert b"404" in (await stage.admin("/backends/c/drain", "POST")).partition(b"\r\n")[0]
            assert b"405" in (await stage.admin("/backends/a/drain")).partition(b"\r\n")[0]

    run(story())


async def silent(stage: Stage, *engines: Engine) -> None:
    """Lets engines answer no probe until the gateway takes them as down."""
    for engine in engines:
        engine.well = None
    for engine, backend in zip(stage.engines, stage.shared.backends, strict=True):
        while engine in engines and backend.state.value != "down":
            await asyncio.sleep(0.01)


def test_backends_that_are_only_silent_to_probes_are_the_last_resort() -> None:
    async def story() -> None:
        engines = (Engine("a", step_s=0.2), Engine("b", step_s=0.2))
        async with Stage(*engines, health=IMPATIENT) as stage:
            await silent(stage, *engines)
            client = await stage.client()
            assert (await client.get("/ready")).status == 503
            client.writer.close()
            asked = (stage.ask(stream=True, max_tokens=1) for _ in range(20))
            assert all(one.done for one in await asyncio.gather(*asked))
            assert sum(len(engine.requests) for engine in engines) == 20
            assert set(stage.count("last_resorts")) == {("a",), ("b",)}
            assert b"\nllmroute_last_resort_total{backend=" in await stage.admin("/metrics")

    run(story())


def test_a_last_resort_that_answers_is_up_again() -> None:
    async def story() -> None:
        async with Stage(
            Engine("a", well=None), health=HealthConfig(interval_s=30.0, timeout_s=0.05)
        ) as stage:
            assert stage.shared.backends[0].state.value == "down"
            assert (await stage.ask()).status == 200
            assert stage.shared.backends[0].state.value == "up"
            await stage.ask()
            assert stage.count("last_resorts") == {("a",): 1}

    run(story())


def test_what_is_drained_or_says_no_itself_is_no_last_resort() -> None:
    async def story() -> None:
        async with Stage(health=IMPATIENT) as stage:
            await silent(stage, *stage.engines)
            await stage.admin("/backends/a/drain", "POST")
            stage.engines[1].behaviour = reset
            for _ in range(3):
                got = await stage.ask()
                assert (got.status, got.head.get(b"retry-after")) == (503, b"1")
            assert [len(engine.requests) for engine in stage.engines] == [0, 1]
        async with Stage(Engine("a", well=False), health=RESTLESS) as stage:
            assert (await stage.ask()).status == 503
            assert stage.engines[0].requests == []

    run(story())


@pytest.mark.parametrize("behaviour", [answer, status(503), status(429)])
def test_while_any_backend_is_up_there_is_no_last_resort(behaviour: Behaviour) -> None:
    async def story() -> None:
        health = HealthConfig(interval_s=0.02, timeout_s=0.3)
        async with Stage(Engine("a"), Engine("b", behaviour), health=health) as stage:
            await silent(stage, stage.engines[0])
            for _ in range(3):
                await stage.ask()
            assert [len(engine.requests) for engine in stage.engines] == [0, 3]
            assert stage.count("last_resorts") == {}

    run(story())


@pytest.mark.parametrize("behaviour", [status(503), status(502), status(500), reset, break_off])
def test_a_backend_that_fails_again_and_again_is_left_out_and_comes_back(
    behaviour: Behaviour,
) -> None:
    async def story() -> None:
        breaker = BreakerConfig(after=3, first_s=0.3)
        engines, retry = (Engine("a", behaviour), Engine("b")), RetryConfig(retry_500=True)
        async with Stage(*engines, breaker=breaker, health=QUICK, retry=retry) as stage:
            left_out = stage.shared.backends[0]
            while left_out.failures < 3:
                await stage.ask(stream=True)
            assert b'"failures": 3' in await stage.admin("/backends")
            engines[0].behaviour = answer
            before = len(engines[0].requests)
            seen = set()
            while left_out.failures:
                assert (await stage.ask(stream=True)).done
                seen.add(left_out.state.value)
                assert left_out.state.value != "down" or len(engines[0].requests) == before
            assert {"down", "up"} <= seen

    run(story())


def test_an_engine_that_is_busy_or_refuses_what_is_wrong_is_not_left_out() -> None:
    async def story() -> None:
        for code in (429, 400, 500):
            async with Stage(Engine("a", status(code)), health=QUICK) as stage:
                for _ in range(10):
                    assert (await stage.ask()).status == code
                assert stage.shared.backends[0].state.value == "up"
                assert stage.shared.backends[0].failures == 0

    run(story())


def test_silence_counts_as_a_failure() -> None:
    async def story() -> None:
        timeouts = GatewayTimeouts(first_byte_s=0.1)
        breaker = BreakerConfig(after=2)
        async with Stage(Engine("a", hang), timeouts=timeouts, breaker=breaker) as stage:
            for _ in range(2):
                assert (await stage.ask()).status == 504
            assert stage.shared.backends[0].state.value == "down"

    run(story())


def test_the_list_of_models_makes_up_for_no_failure() -> None:
    async def story() -> None:
        async with Stage(Engine("a", status(503))) as stage:
            client = await stage.client()
            for _ in range(5):
                assert (await client.ask()).status == 503
                assert (await client.get("/v1/models")).status == 200
            client.writer.close()
            assert stage.shared.backends[0].failures == 5

    run(story())


def test_backends_that_are_all_left_out_are_the_last_resort() -> None:
    async def story() -> None:
        engines = (Engine("a", status(503, retry_after=b"9")), Engine("b", status(503)))
        breaker = BreakerConfig(after=2, first_s=30.0)
        async with Stage(*engines, breaker=breaker, health=QUICK) as stage:
            for _ in range(5):
                assert (await stage.ask()).status == 503
            assert [one.state.value for one in stage.shared.backends] == ["down"] * 2
            assert [len(engine.requests) for engine in engines] == [5, 5]
            engines[1].behaviour = answer
            for _ in range(5):
                assert (await stage.ask()).status == 200
            assert [one.state.value for one in stage.shared.backends] == ["down", "up"]
            assert len(engines[0].requests) <= 6

    run(story())

"""How the gateway runs: its numbers, its log, who decides, its connections, its end."""

import asyncio
from pathlib import Path

import pytest

from llmroute_gym.config import GatewayTimeouts, PolicyConfig, ScrapeConfig
from llmroute_gym.sim.request_log import read_request_log
from llmroute_gym.sim.traces import load_trace
from tests.gateway.stage import RESTLESS, Engine, Stage, break_off, run, status


def test_metrics_tell_what_happened() -> None:
    async def story() -> None:
        scraping = ScrapeConfig(interval_s=0.25)
        async with Stage(Engine("a"), scrape=scraping) as stage:
            stage.engines[0].metrics = (
                b"# HELP vllm:num_requests_running x\n"
                b'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n'
                b'vllm:num_requests_waiting{engine="0",model_name="m"} 2.0\n'
                b'vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5\n'
                b'vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0\n'
                b'vllm:prefix_cache_hits_total{engine="0",model_name="m"} 25.0\n'
            )
            await stage.ask(stream=True)
            await asyncio.sleep(0.4)
            text = (await stage.admin("/metrics")).partition(b"\r\n\r\n")[2].decode()
            lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
            assert lines['llmroute_requests_total{backend="a",code="200"}'] == "1"
            assert lines['llmroute_inflight{backend="a",phase="waiting"}'] == "0"
            assert lines['llmroute_backend_up{backend="a"}'] == "1"
            assert lines["llmroute_ttft_seconds_count"] == "1"
            assert lines['llmroute_ttft_seconds_bucket{le="+Inf"}'] == "1"
            assert 0 <= float(lines['llmroute_scrape_age_seconds{backend="a"}']) < 0.5
            names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
            assert {
                "llmroute_pending_prompt_tokens",
                "llmroute_e2e_seconds",
                "llmroute_overhead_seconds",
                "llmroute_decision_seconds",
                "llmroute_retries_total",
                "llmroute_stream_errors_total",
                "llmroute_client_disconnects_total",
                "llmroute_policy_fallbacks_total",
                "llmroute_shadow_disagreements_total",
                "llmroute_prompt_tokens_error_ratio",
            } <= names

    run(story())


def test_the_log_tells_each_request_and_is_a_trace(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"

    async def story() -> None:
        async with Stage(Engine("a"), log=str(path), session_header="x-session") as stage:
            client = await stage.client()
            options = {"include_usage": True}
            await client.ask(prompt="secret", max_tokens=4, stream=True, stream_options=options)
            await client.ask(prompt=[1] * 50, max_tokens=7)
            body = b'{"prompt": "a", "stream": true}'
            await client.send("/v1/completions", body, b"X-Session: alice\r\n")
            stage.engines[0].behaviour = status(400)
            await client.ask()
            stage.engines[0].behaviour = break_off
            await client.ask(stream=True)
            client.writer.close()

    run(story())
    first, second, third, *rest = read_request_log(path)
    assert (first.prompt_tokens, first.output_tokens, first.outcome) == (6, 4, "ok")
    assert first.first_token_at_s is not None
    assert second.output_tokens == 7
    assert second.first_token_at_s is None
    assert third.session is not None
    assert third.output_tokens == 3
    assert [one.outcome for one in rest] == ["refused", "cut"]
    assert b"secret" not in path.read_bytes()
    assert len(load_trace(path)) >= 3


def test_shadows_are_counted_and_change_nothing() -> None:
    async def story() -> None:
        policy = PolicyConfig(mode="shadow", rule="round_robin", policy="lor")
        async with Stage(policy=policy) as stage:
            for _ in range(10):
                await stage.ask()
            assert [len(engine.requests) for engine in stage.engines] == [5, 5]
            assert stage.shared.chooser.disagreements.counts[()] == 5

    run(story())


def test_with_the_mode_alone_changed_the_policy_decides(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def story() -> None:
        policy = PolicyConfig(mode="learned", rule="round_robin", policy="lor")
        async with Stage(policy=policy) as stage:
            for _ in range(10):
                await stage.ask()
            assert [len(engine.requests) for engine in stage.engines] == [10, 0]
        said = "policy.rule=round_robin is not asked, as policy.mode=learned"
        assert caplog.text.count(said) == 1

    run(story())


def test_a_router_that_fails_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with Stage() as stage:

            def broken(*_: object) -> int:
                raise ValueError("no idea")

            stage.shared.chooser._main._router.route = broken
            for _ in range(5):
                assert (await stage.ask()).status == 200
            assert stage.shared.chooser.fallbacks.counts == {("error",): 5}
            assert caplog.text.count("a decision failed") == 1

    run(story())


def test_connections_are_used_again_and_closed_when_idle() -> None:
    async def story() -> None:
        timeouts = GatewayTimeouts(upstream_idle_s=0.2)
        async with Stage(Engine("a"), timeouts=timeouts, health=RESTLESS) as stage:
            client = await stage.client()
            for _ in range(20):
                await client.ask(stream=True, max_tokens=1)
            assert len(stage.shared.backends[0].pool.open) == 1
            await asyncio.sleep(0.4)
            assert stage.shared.backends[0].pool.open == set()
            client.writer.close()

    run(story())


def test_before_the_end_load_balancers_are_told_while_requests_are_taken() -> None:
    async def story() -> None:
        for signals in (1, 2):
            seconds = 0.5 if signals == 1 else 20.0
            async with Stage(timeouts=GatewayTimeouts(grace_s=seconds)) as stage:
                client, hurry = await stage.client(), asyncio.Event()
                assert (await client.get("/ready")).status == 200
                leaving = asyncio.create_task(stage.gateway.take_leave(hurry))
                await asyncio.sleep(0)
                got = await client.get("/ready")
                assert (got.status, got.content) == (503, b'{"status": "the gateway ends"}')
                assert (await stage.ask(stream=True)).done
                assert not leaving.done()
                if signals == 2:
                    hurry.set()
                await asyncio.wait_for(leaving, 10)
                client.writer.close()

    run(story())


def test_the_end_lets_streams_end_and_cuts_the_rest() -> None:
    async def story() -> None:
        engine = Engine("a", step_s=0.02)
        async with Stage(engine, timeouts=GatewayTimeouts(drain_s=0.6)) as stage:
            short = asyncio.create_task(stage.ask(stream=True, max_tokens=10))
            long = asyncio.create_task(stage.ask(stream=True, max_tokens=1000))
            while len(engine.requests) < 2:
                await asyncio.sleep(0.01)
            await stage.gateway.close()
            assert (await short).done
            cut = await long
            assert not cut.whole
            assert b"upstream_error" in cut.content

    run(story())

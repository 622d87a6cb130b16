"""The table of a step log: the sums that a batch's time depends on."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from vllm_iterations import WARM_UP, iterations, main

from llmroute_gym.sim import FormulaBatchTime, Replica, Workload
from llmroute_gym.sim.fit import fit_formula
from llmroute_gym.sim.reference.block_names import block_names
from llmroute_gym.sim.reference.request import Request
from llmroute_gym.sim.reference.schedulers import VllmV1

TRUTH = FormulaBatchTime(c0=0.01, c1=0.0, n0=0.0, c4=2e-4, c2=2e-6, c3=1e-7)


def logged(rng: np.random.Generator, count: int) -> tuple[list[str], list[list[float]]]:
    """A log of the simulator's own steps, memory short, and each step's sums."""
    prompts, outputs = rng.integers(1, 600, count), rng.integers(1, 60, count)
    work = Workload(np.arange(count) * 0.05, prompts, outputs)
    replica = Replica(TRUTH, scheduler="vllm_v1", num_blocks=80, max_batched_tokens=256)
    scheduler = VllmV1(replica)
    lines, sums = [], []
    for index, names in enumerate(block_names(work)):
        one = Request(index, 0.0, int(prompts[index]), int(outputs[index]), names)
        scheduler.waiting.append(one)
        lines.append({"at": 0.0, "add": f"r{index}", "prompt": one.prompt_tokens})
    now_s = 1.0
    while scheduler.waiting or scheduler.running:
        batch = scheduler.start_batch()
        before = [(f"r{one.index}", one.computed_tokens) for one in batch.requests]
        scheduled = [(name, n, c) for (name, c), n in zip(before, batch.tokens, strict=True)]
        lines.append({"at": now_s, "start": scheduled})
        total = batch.sums()
        took_s = TRUTH.seconds(total)
        prefill = total.tokens - total.decodes
        sizes = [prefill, total.chunk_squares, total.chunk_context]
        sums.append([*sizes, total.decodes, total.decode_context, took_s])
        now_s += took_s
        lines.append({"at": now_s, "end": batch.total_tokens})
        scheduler.end_batch(now_s)
    assert scheduler.pool.free_blocks == 79
    return list(map(json.dumps, lines)), sums


def test_its_sums_are_those_of_the_scheduler() -> None:
    lines, sums = logged(np.random.default_rng(3), 40)
    found = list(iterations(lines))
    assert len(found) > 100
    np.testing.assert_allclose(found, sums[WARM_UP:])


def test_the_table_gives_the_formula_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, _ = logged(np.random.default_rng(4), 60)
    log, table = tmp_path / "steps.jsonl", tmp_path / "steps.csv"
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["vllm_iterations", str(log), str(table)])
    main()
    with table.open(encoding="utf-8") as rows:
        assert len(list(csv.reader(rows))) > 100
    fitted = fit_formula(table)
    for name in ("c0", "c4", "c2", "c3"):
        assert getattr(fitted, name) == pytest.approx(getattr(TRUTH, name), rel=1e-3), name


def test_steps_that_overlap_are_refused() -> None:
    lines = [{"at": 1.0, "start": []}, {"at": 1.1, "start": []}]
    with pytest.raises(SystemExit, match="--no-async-scheduling"):
        list(iterations(map(json.dumps, lines)))

"""From a trace to a served policy, and back from its log: two mock engines behind the gateway.

python examples/serve_a_policy.py [TRACE]
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen, check_call
from urllib.request import urlopen

import numpy as np

PYTHON, PROFILE = [sys.executable, "-m"], "h100-llama-3.1-8b"
rng = np.random.default_rng(0)


def start(stack, command, *words):
    """Starts a server that ends with the stack, and returns what it says first, word by word."""
    words = [*PYTHON, f"llmroute_gym.{command}", *words]
    process = stack.enter_context(Popen(words, stdout=PIPE, text=True))
    stack.callback(process.terminate)
    return process.stdout.readline().split()


def ask(url, wait_s, prompt, output_tokens):
    """Has a request answered, in a while."""
    time.sleep(wait_s)
    fields = {"prompt": prompt, "max_tokens": int(output_tokens), "stream": True}
    urlopen(f"{url}/v1/completions", json.dumps(fields).encode()).read()


# What engines tell and what a gateway counts is less than a simulator knows: observation=router.
trace = ["workload=trace", f"workload.path={sys.argv[1]}"] if len(sys.argv) > 1 else []
service = [f"cluster.profile={PROFILE}", "cluster.replicas=2", "observation=router"]
training = ["training.qps=20", "training.ppo_requests=9000", "warm_start=none", "evaluation.runs=4"]
check_call([*PYTHON, "llmroute_gym.train", *trace, *service, *training, "run_dir=policy"])
check_call([*PYTHON, "llmroute_gym.export", "policy", "policy.npz"])

with ExitStack() as stack:
    urls = [start(stack, "mock_engine", f"profile={PROFILE}", "port=0")[-1] for _ in range(2)]
    settings = {"listen": "127.0.0.1:0", "admin": None, "log": "requests.csv"}
    settings["policy"] = {"mode": "learned", "policy": "policy.npz"}
    settings["backends"] = [{"name": f"engine{i}", "url": url} for i, url in enumerate(urls)]
    Path("gateway.yaml").write_text(json.dumps(settings))  # JSON is YAML
    url = "http://127.0.0.1:" + start(stack, "serve", "gateway.yaml")[3].strip(",")
    prompts = [rng.integers(100_000, size=n).tolist() for n in rng.integers(200, 2000, 60)]
    requests = (rng.exponential(1 / 20, 60).cumsum(), prompts, rng.integers(20, 200, 60))
    list(stack.enter_context(ThreadPoolExecutor(60)).map(ask, [url] * 60, *requests))

print(*Path("requests.csv").read_text().splitlines()[:5], sep="\n", flush=True)
check_call([*PYTHON, "llmroute_gym.calibrate", "requests.csv", "candidates=100", "run_dir=fitted"])
own = ["workload=trace", "workload.path=requests.csv", "workload.own_rate=true", "requests=30"]
fitted = ["cluster.profile=fitted/profile.yaml", "cluster.replicas=2", "runs=2"]
compared = ["routers=[policy.npz,lor,round_robin]", "run_dir=compared"]
check_call([*PYTHON, "llmroute_gym.evaluate", *own, *fitted, *compared])

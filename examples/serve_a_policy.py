"""From a trace to a served policy, and back from its log: two mock engines behind the gateway.

python examples/serve_a_policy.py [TRACE]
"""

import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import create_server
from urllib.request import Request, urlopen

import numpy as np
import yaml

PROFILE, PYTHON = "h100-llama-3.1-8b", [sys.executable, "-m"]
rng = np.random.default_rng(0)


def run(command, *words):
    """Runs a command to its end."""
    subprocess.run([*PYTHON, f"llmroute_gym.{command}", *words], check=True)


@contextmanager
def running(command, *words):
    """Starts a server and waits for its first line; ends it with the block, however that ends."""
    words = [*PYTHON, f"llmroute_gym.{command}", *words]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline()
        finally:
            process.terminate()


def ask(url, prompt, output_tokens):
    """Has a request answered, and returns which backend did."""
    fields = {"prompt": prompt, "max_tokens": output_tokens, "stream": True}
    with urlopen(Request(f"{url}/v1/completions", json.dumps(fields).encode())) as answer:
        answer.read()
        return answer.headers["x-llmroute-backend"]


# What engines tell and what a gateway counts is less than a simulator knows: observation=router.
trace = ["workload=trace", f"workload.path={sys.argv[1]}"] if len(sys.argv) > 1 else []
engines = [f"cluster.profile={PROFILE}", "cluster.replicas=2"]
training = ["training.qps=20", "training.ppo_requests=9000", "warm_start=none", "evaluation.runs=4"]
run("train", *trace, *engines, *training, "observation=router", "run_dir=policy")
run("export", "policy", "policy.npz")

with ExitStack() as stack:
    settings = {"listen": "127.0.0.1:0", "admin": None, "show_backend": True, "log": "requests.csv"}
    settings |= {"policy": {"mode": "learned", "policy": "policy.npz"}, "backends": []}
    settings["health"] = {"timeout_s": 10}  # a busy machine's engines are well, but late
    for name in ("a", "b"):
        with create_server(("127.0.0.1", 0)) as found:
            port = found.getsockname()[1]
        stack.enter_context(running("mock_engine", f"profile={PROFILE}", f"port={port}"))
        settings["backends"].append({"name": name, "url": f"http://127.0.0.1:{port}"})
    Path("gateway.yaml").write_text(yaml.safe_dump(settings))
    said = stack.enter_context(running("serve", "gateway.yaml"))
    url = f"http://127.0.0.1:{said.split()[3].strip(',')}"
    clients, asked = stack.enter_context(ThreadPoolExecutor(60)), []
    for wait_s in rng.exponential(1 / 20, 60):
        time.sleep(wait_s)
        prompt = rng.integers(100_000, size=rng.integers(200, 2000)).tolist()
        asked.append(clients.submit(ask, url, prompt, int(rng.integers(20, 200))))
    went = Counter(one.result() for one in asked)

print("\n".join(f"backend {name}: {count} requests" for name, count in sorted(went.items())))
print("\n".join(Path("requests.csv").read_text().splitlines()[:5]))
run("calibrate", "requests.csv", f"profile={PROFILE}", "candidates=100", "run_dir=measured")
own = ["workload=trace", "workload.path=requests.csv", "workload.own_rate=true"]
measured = ["cluster.profile=measured/profile.yaml", "cluster.replicas=2", "runs=2", "requests=30"]
run("evaluate", *own, *measured, "routers=[policy.npz,lor,round_robin]", "run_dir=compared")

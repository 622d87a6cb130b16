"""How much load can four replicas take? P99 latency against arrival rate, for two routers.

python examples/capacity_planning.py [TRACE [REQUESTS]]
"""

import sys

import matplotlib.pyplot as plt
import numpy as np

from llmroute_gym import Cluster, load_trace, simulate
from llmroute_gym.sim import PoissonArrivals, SyntheticWorkload, TraceWorkload, azure_conv

n_requests = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
if len(sys.argv) > 1 and sys.argv[1] != "azure_conv":
    source = TraceWorkload(load_trace(sys.argv[1]))
else:
    source = SyntheticWorkload(azure_conv(), PoissonArrivals(), qps=1.0)

cluster = Cluster.from_profile("a100-internlm-20b", replicas=4)
rates = np.arange(2.0, 5.6, 0.5)
figure, (e2e, ttft) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for router in ("round_robin", "lor"):
    e2e_p99_s, ttft_p99_s = [], []
    for qps in rates:
        # The same seed at every rate: the same requests, closer together.
        workload = source.with_qps(qps).sample(n_requests, np.random.default_rng(0))
        summary = simulate(workload, cluster, router, seed=0).summary()
        e2e_p99_s.append(summary["e2e_p99_s"])
        ttft_p99_s.append(summary["ttft_p99_s"])
        print(f"{router:12} {qps:.1f} requests/s: P99 {e2e_p99_s[-1]:6.2f} s")
    e2e.plot(rates, e2e_p99_s, marker="o", label=router)
    ttft.plot(rates, ttft_p99_s, marker="o", label=router)

e2e.set(xlabel="arrival rate (requests/s)", ylabel="P99 end-to-end latency (s)", ylim=(0, None))
ttft.set(xlabel="arrival rate (requests/s)", ylabel="P99 time to first token (s)", yscale="log")
ttft.yaxis.set_major_formatter("{x:g}")
ttft.yaxis.set_minor_formatter("{x:g}")
e2e.legend(frameon=False)
figure.savefig("capacity_planning.png", dpi=120)

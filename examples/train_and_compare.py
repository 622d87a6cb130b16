"""Train Stable-Baselines3's own PPO on eight environments, then compare it with two rules.

python examples/train_and_compare.py [REQUESTS]
"""

import sys

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

import llmroute_gym
from llmroute_gym.sb3 import ReplicaSetPolicy, RouterVecEnv
from llmroute_gym.sim import PoissonArrivals, SyntheticWorkload, azure_conv

requests = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
torch.set_num_threads(1)  # fastest for networks of this size
envs = VecMonitor(RouterVecEnv(gym.make_vec("LLMRoute-v0", num_envs=8, qps=3.5)))
envs = VecNormalize(envs, norm_obs=False, gamma=0.95)
model = PPO(ReplicaSetPolicy, envs, n_steps=128, n_epochs=8, gamma=0.95, gae_lambda=0.9, seed=0)
model.learn(requests)

cluster = llmroute_gym.Cluster.from_profile("a100-internlm-20b", replicas=4)
source = SyntheticWorkload(azure_conv(), PoissonArrivals(), qps=3.5)
workloads = [source.sample(500, np.random.default_rng([1, run])) for run in range(4)]
for name, router in {"ppo": model, "round_robin": "round_robin", "lor": "lor"}.items():
    outcomes = [llmroute_gym.simulate(w, cluster, router, seed=0) for w in workloads]
    e2e = np.concatenate([outcome.e2e_s for outcome in outcomes])
    print(f"{name:12} mean {e2e.mean():6.2f} s, P99 {np.percentile(e2e, 99):6.2f} s")

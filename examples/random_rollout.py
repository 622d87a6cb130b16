"""One episode of random routing, watched: writes an animation, a frame and prints the outcome.

python examples/random_rollout.py [FOLDER]
"""

import sys
from pathlib import Path

import gymnasium as gym
from PIL import Image

import llmroute_gym  # noqa: F401  (registers LLMRoute-v0)

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
folder.mkdir(parents=True, exist_ok=True)
env = gym.make("LLMRoute-v0", requests_per_episode=60, qps=4.0, render_mode="rgb_array")
env.action_space.seed(0)
observation, info = env.reset(seed=0)

frames, total, terminated = [], 0.0, False
while not terminated:
    # The mask allows every replica that can hold the request.
    action = env.action_space.sample(mask=info["action_mask"])
    observation, reward, terminated, truncated, info = env.step(action)
    total += reward
    frames.append(Image.fromarray(env.render()))
env.close()

frames[len(frames) // 2].save(folder / "random_rollout.png")
frames[0].save(
    folder / "random_rollout.gif", save_all=True, append_images=frames[1:], duration=125, loop=0
)
print(f"return {total:.1f}")
for name in ("e2e_mean_s", "e2e_p99_s", "ttft_p99_s", "throughput_rps"):
    print(f"{name:15} {info[f'episode_metrics/{name}']:.2f}")

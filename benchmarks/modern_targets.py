"""The shipped profiles of today's models, their limits and what they were composed from."""

import json
from dataclasses import dataclass
from pathlib import Path

from llmroute_gym.sim.batch_time import BatchTimeModel
from llmroute_gym.sim.profile_time import Profile

TIME_FACTOR = 1.05  # as measurements that were published suggest: a sum of kernels is too fast

SOURCE = (
    "Iteration times computed with NVIDIA AIConfigurator (aiconfigurator-core 0.12.0, Copyright "
    "(c) 2025-2026 NVIDIA CORPORATION & AFFILIATES, Apache License 2.0), from its kernel "
    "measurements on the named GPU and engine version; composed into batches and fitted by this "
    "project."
)

ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}

SMALL = ("A100", "L40S")
"""GPUs that vLLM gives smaller defaults: 2,048 tokens and 256 requests in a batch."""

UNCHECKED = ("B200", "L40S", "H200", "fp8")
"""GPUs and weights that no published measurement was compared with."""

SHARED_READS = {"h100x2-qwen3-32b": 0.44}
"""Where times between tokens of requests with common prefixes were published (published.py)."""


@dataclass(frozen=True)
class ModernTarget:
    """One shipped profile and what its iterations were composed from."""

    name: str
    model: str
    gpu: str
    engine: str
    weights: str
    num_blocks: int
    most_decodes: int  # in the composed batches

    @property
    def checked(self) -> bool:
        """Whether published measurements of this GPU and kind of weights were compared with."""
        return not any(word in f"{self.gpu} {self.weights}" for word in UNCHECKED)

    def profile(self, batch_time: BatchTimeModel) -> Profile:
        """Returns the profile that ships."""
        small = any(word in self.gpu for word in SMALL)
        checked = "" if self.checked else "; unchecked against any measurement"
        return Profile(
            name=self.name,
            batch_time=batch_time,
            limits={
                "num_blocks": self.num_blocks,
                "block_size": 16,
                "max_batch": 256 if small else 1024,
                "max_batched_tokens": 2048 if small else 8192,
            },
            model=self.model,
            hardware=self.gpu,
            description=f"{self.model} ({self.weights}) on {self.gpu}, lines fitted to iterations "
            f"modelled from measured kernels of {self.engine}, not measured iterations{checked}",
            source=SOURCE,
            licence="Apache-2.0",
            scheduler="vllm_v1",
            shared_reads=SHARED_READS.get(self.name, 0.0),
        )


def modern_targets(data: Path) -> tuple[ModernTarget, ...]:
    """Returns the profiles that the data hold, sorted by name."""
    facts = json.loads((data / "modern" / "meta.json").read_text(encoding="utf-8"))
    return tuple(
        ModernTarget(
            name=name,
            model=one["model"],
            gpu=one["gpu"],
            engine=f"{ENGINES[one['backend']]} {one['version']}",
            weights=one["weights"],
            num_blocks=one["num_blocks"],
            most_decodes=one["max_batch"],
        )
        for name, one in sorted(facts.items())
    )

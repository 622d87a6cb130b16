"""The shipped profiles, their limits and what they are fitted to."""

from dataclasses import dataclass

from llmroute_gym.sim.batch_time import BatchTimeModel
from llmroute_gym.sim.profile_time import Profile


@dataclass(frozen=True)
class Target:
    """One shipped profile and the measurements that it is fitted to."""

    name: str
    combo: str
    model: str
    hardware: str
    num_blocks: int
    capacity_rps: float  # of four replicas, chunked, Azure's conversation lengths; about
    gqa: bool
    max_batch: int = 128

    def limits(self) -> dict[str, int]:
        """Returns the limits of its replica."""
        return {
            "num_blocks": self.num_blocks,
            "block_size": 16,
            "watermark_blocks": self.num_blocks // 100,
            "max_batch": self.max_batch,
            "max_batched_tokens": 4096,
            "chunk_size": 512,
        }

    def profile(self, batch_time: BatchTimeModel) -> Profile:
        """Returns the profile that ships."""
        return Profile(
            name=self.name,
            batch_time=batch_time,
            limits=self.limits(),
            model=self.model,
            hardware=self.hardware,
            description=f"{self.model} on {self.hardware}, tables fitted to profiled iterations",
            source="profiles of Microsoft Vidur (github.com/microsoft/vidur, commit 7d47513)"
            + self.remark(),
            licence="MIT",
        )

    def remark(self) -> str:
        """Returns what to know of this profile's measurements."""
        if self.hardware.startswith("2 x"):
            return ""
        gaps = ", with gaps in two operators" if "A30" in self.hardware else ""
        return f"; attention from a public fork of it{gaps}"


TARGETS = (
    Target(
        "a100-internlm-20b",
        "a100_internlm-20b_tp1",
        "internlm/internlm-20b",
        "1 x A100 80GB",
        num_blocks=1792,
        capacity_rps=5,
        gqa=False,
    ),
    Target(
        "a100-llama-2-7b",
        "a100_llama2-7b_tp1",
        "meta-llama/Llama-2-7b-hf",
        "1 x A100 80GB",
        num_blocks=7424,
        capacity_rps=18,
        gqa=False,
    ),
    Target(
        "a100x2-llama-2-70b",
        "a100_llama2-70b_tp2",
        "meta-llama/Llama-2-70b-hf",
        "2 x A100 80GB",
        num_blocks=3328,
        capacity_rps=5,
        gqa=True,
    ),
    Target(
        "a100x2-codellama-34b",
        "a100_codellama-34b_tp2",
        "codellama/CodeLlama-34b-Instruct-hf",
        "2 x A100 80GB",
        num_blocks=27648,
        capacity_rps=13,
        gqa=True,
    ),
    Target(
        "h100-codellama-34b",
        "h100_codellama-34b_tp1",
        "codellama/CodeLlama-34b-Instruct-hf",
        "1 x H100 80GB",
        num_blocks=3328,
        capacity_rps=14,
        gqa=True,
    ),
    Target(
        "a30-qwen2-7b",
        "a30_qwen2-7b_tp1",
        "Qwen/Qwen2-7B",
        "1 x A30 24GB",
        num_blocks=11008,
        capacity_rps=12,
        gqa=True,
        max_batch=48,
    ),
)

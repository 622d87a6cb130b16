"""One request's life on a replica."""

import math
from dataclasses import dataclass

from llmroute_gym.sim.reference.block_names import BlockNames


@dataclass(slots=True, eq=False)
class Request:
    """A request as a replica sees it.

    Attributes:
        index: its number in the workload.
        arrived_at_s: seconds.
        prompt_tokens: tokens to prefill; a restart may change it.
        output_tokens: tokens still to come out after the prefill; a restart may change it.
        names: of its blocks of tokens.
        done: tokens that have KV, plus one once the prefill is complete.
        blocks: KV blocks held.
        preemptions: restarts so far.
        cached_tokens: found in the prefix cache at the first admission.
        recached_tokens: found at the admissions after restarts, summed.
        scheduled_at_s: start of its first batch, NaN before.
        first_token_at_s: end of the batch that completed its first prefill, NaN before.
        finished_at_s: NaN before.
    """

    index: int
    arrived_at_s: float
    prompt_tokens: int
    output_tokens: int
    names: BlockNames
    done: int = 0
    blocks: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    recached_tokens: int = 0
    scheduled_at_s: float = math.nan
    first_token_at_s: float = math.nan
    finished_at_s: float = math.nan

    @property
    def prefilled(self) -> bool:
        """Whether the prefill is complete."""
        return self.done >= self.prompt_tokens

    @property
    def known_tokens(self) -> int:
        """Tokens of the prompt and those that are out."""
        return self.done if self.prefilled else self.prompt_tokens

    @property
    def computed_tokens(self) -> int:
        """Tokens that have KV; the newest one gets it in the next step."""
        return self.done - 1 if self.prefilled else self.done

    @property
    def finished(self) -> bool:
        """Whether the last token is out."""
        return self.done >= self.prompt_tokens + self.output_tokens

    @property
    def started(self) -> bool:
        """Whether the first token is out, now or before a restart."""
        return not math.isnan(self.first_token_at_s)

    def restart(self, keep_prompt: bool) -> None:
        """Drops all KV; what was processed must be recomputed.

        Args:
            keep_prompt: whether a prompt that was prefilled in part stays a prompt. If not, only
                the processed part does and the rest counts as output (Vidur's way).
        """
        total = self.prompt_tokens + self.output_tokens
        self.prompt_tokens = max(self.prompt_tokens, self.done) if keep_prompt else self.done
        self.output_tokens = total - self.prompt_tokens
        self.done = 0
        self.preemptions += 1

    def find(self, cached_tokens: int) -> None:
        """Counts the leading tokens that the prefix cache holds as this request is admitted."""
        self.done = cached_tokens
        if self.preemptions:
            self.recached_tokens += cached_tokens
        else:
            self.cached_tokens = cached_tokens

    def advance(self, tokens: int, now_s: float) -> None:
        """Counts the tokens of a batch that ends now; stamps the first token and the finish.

        Args:
            tokens: the prefill chunk, or 1 for a decode step.
            now_s: end of the batch, seconds.
        """
        in_prefill = not self.prefilled
        self.done += tokens
        if in_prefill and self.prefilled:
            self.done += 1
            if not self.started:
                self.first_token_at_s = now_s
        if self.finished:
            self.finished_at_s = now_s

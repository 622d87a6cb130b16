"""Makes the shipped table of Azure conversation lengths from the trace.

Usage: python benchmarks/fit_workload.py [TRACE] [--out FILE]

The same trace gives the same bytes. TRACE defaults to traces/azure_conv_2023.csv in
$LLMROUTE_DATA or ../shared/data.
"""

import argparse
import os
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from llmroute_gym.sim.lengths import AZURE_CONV_TABLE, TableLengths
from llmroute_gym.sim.traces import load_trace

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("LLMROUTE_DATA", ROOT.parent / "shared" / "data"))
COMPARED = 1_000_000  # requests drawn for the comparison


def main() -> None:
    """Writes the table and prints how it compares with the trace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "trace", nargs="?", type=Path, default=DATA / "traces" / "azure_conv_2023.csv"
    )
    parser.add_argument("--out", type=Path, default=AZURE_CONV_TABLE)
    arguments = parser.parse_args()

    recorded = load_trace(arguments.trace)
    table = TableLengths.fit(recorded.prompt_tokens, recorded.output_tokens)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_npz(arguments.out)
    print(f"{arguments.out}: {table.counts.shape} cells, {arguments.out.stat().st_size} bytes")

    drawn = table.sample(COMPARED, np.random.default_rng(0))
    originals = (recorded.prompt_tokens, recorded.output_tokens)
    print(f"{'':16}{'mean':>9}{'std':>9}{'P50':>8}{'P90':>8}{'P99':>8}{'P99.9':>8}{'max':>8}")
    for part, original, sampled in zip(("prompt", "output"), originals, drawn, strict=True):
        for origin, tokens in (("trace", original), ("table", sampled)):
            quantiles = np.percentile(tokens, [50, 90, 99, 99.9, 100])
            print(
                f"{part + ' ' + origin:16}{tokens.mean():9.1f}{tokens.std():9.1f}"
                + "".join(f"{value:8.0f}" for value in quantiles)
            )
    for origin, pair in (("trace", originals), ("table", drawn)):
        spearman = float(spearmanr(*pair).statistic)
        print(f"{origin}: Spearman {spearman:.4f}, Pearson {np.corrcoef(*pair)[0, 1]:.4f}")


if __name__ == "__main__":
    main()

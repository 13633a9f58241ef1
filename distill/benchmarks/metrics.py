"""``distill bench metrics``: the GazeFollow AUC against resizing and scikit-learn, and a whole test split's metric time."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

WIDTH, HEIGHT, HEADS = 640, 480, 4782  # GazeFollow's test split has 4,782 heads
RATIO_BAR, SECONDS_BAR = 40, 20.0
# Name, annotators of a head, share of the simulated split. A distilled model's maps are mostly peaks with some ripple.
KINDS = (("peaks", 10, 0.4), ("smooth", 10, 0.3), ("noisy", 10, 0.3), ("peaks", 1, 0.0), ("noisy", 1, 0.0))

EPILOG = """\
examples:
  distill bench metrics                  both bars: 40 times faster a head, 20 s for a whole test split on two cores
  distill bench metrics --quick --json   fewer rounds and a tenth of the split (its time is scaled up)
"""


def register(actions: Any) -> None:
    """Add ``metrics`` to the benchmarks."""
    parser: argparse.ArgumentParser = actions.add_parser(
        "metrics",
        help="GazeFollow AUC against scikit-learn, and a whole split's metric time",
        description="Score heads of 640×480 pictures by the GazeFollow AUC, and the same heads by resizing the map with torch and calling "
        "scikit-learn's roc_auc_score, in turns, in this process, on one core. Then score a simulated test split of 4,782 heads.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="rounds of each kind of map (default: 15)")
    parser.add_argument("--quick", action="store_true", help="5 rounds, and a tenth of the split")
    parser.add_argument("--json", action="store_true", help="the same facts as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure both bars."""
    import os

    # One core: the libraries read these as they are imported, and what spins beside a small product is counted as CPU time.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"

    from distill.console import print_json, print_result, table
    from distill.errors import ConfigurationError

    rounds = 5 if options.quick else options.rounds
    if rounds < 5:
        raise ConfigurationError(f"--rounds is {rounds}; a median and its spread want at least 5")
    reference = _reference()
    kinds = [_compared(name, annotators, rounds, reference) for name, annotators, _ in KINDS]
    split = _split(HEADS // 10 if options.quick else HEADS)
    facts = {
        "width": WIDTH, "height": HEIGHT, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2), "rounds": rounds,
        "bar_ratio": RATIO_BAR, "kinds": kinds, "split": split,
    }
    if options.json:
        print_json(facts)
        return 0
    rows = [
        [
            kind["kind"], str(kind["annotators"]), f"{kind['reference_ms']:.1f}", f"{kind['median_ms']:.2f}",
            f"{kind['quartiles_ms'][0]:.2f} to {kind['quartiles_ms'][1]:.2f}", f"{kind['ratio']:.0f} ×", f"{kind['largest_difference']:.1e}",
        ]
        for kind in kinds
    ]
    columns = ["maps", "annotators", "scikit-learn ms", "here ms", "quartiles", "ratio", "largest |Δ|"]
    print_result(table(f"GazeFollow AUC of a head, {WIDTH}×{HEIGHT}, CPU time; bar: {RATIO_BAR} ×", columns, rows))
    print_result(
        f"A simulated test split, {split['heads']:,} heads: {split['ms_per_head']} ms of CPU time a head, all metrics included; {split['test_split_s']} s "
        f"for {HEADS:,} heads on one core (bar: {SECONDS_BAR:.0f} s on two), load {facts['load']}"
    )
    return 0


def _reference() -> Callable[[np.ndarray, np.ndarray], float]:
    """The published way: torch's resize in single precision and scikit-learn on every pixel."""
    import numpy as np

    from distill.errors import MissingExtraError

    try:
        from sklearn.metrics import roc_auc_score
    except ImportError:
        raise MissingExtraError(
            "scikit-learn is not installed, and it is what the AUC is compared with; install it with `pip install scikit-learn` (or the extra dev)"
        ) from None
    import torch

    def score(heatmap: np.ndarray, points: np.ndarray) -> float:
        target = np.zeros((HEIGHT, WIDTH))
        for x, y in points:
            target[min(int(y * HEIGHT), HEIGHT - 1), min(int(x * WIDTH), WIDTH - 1)] = 1
        resized = torch.nn.functional.interpolate(torch.from_numpy(heatmap)[None, None], (HEIGHT, WIDTH), mode="bilinear")
        return float(roc_auc_score(target.ravel(), resized[0, 0].numpy().ravel()))

    return score


def _compared(name: str, annotators: int, rounds: int, reference: Callable[[np.ndarray, np.ndarray], float]) -> dict[str, Any]:
    """Both sides on the same new head in every round. CPU time: what other programs take is in neither."""
    import statistics
    import time

    import numpy as np
    import torch

    from distill.metrics import gazefollow_auc, resize_bilinear, roc_auc

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    generator = np.random.default_rng(rounds)
    slow, quick, differences = [], [], []
    try:
        gazefollow_auc(draw(name, generator), generator.random((annotators, 2)), WIDTH, HEIGHT)  # tables that are made once
        for number in range(rounds):
            heatmap, points = draw(name, generator), generator.random((annotators, 2))
            began = time.process_time()
            reference(heatmap.astype(np.float32), points)
            slow.append(time.process_time() - began)
            # Three heads for one: a single call of a millisecond is at the mercy of what the other side left in the cache.
            for other in (points, *(generator.random((annotators, 2)) for _ in range(2))):
                began = time.process_time()
                score = gazefollow_auc(heatmap, other, WIDTH, HEIGHT)
                quick.append(time.process_time() - began)
            if number < 3:
                target = np.zeros((HEIGHT, WIDTH), dtype=bool)
                target[np.minimum((other[:, 1] * HEIGHT).astype(int), HEIGHT - 1), np.minimum((other[:, 0] * WIDTH).astype(int), WIDTH - 1)] = True
                differences.append(abs(score - roc_auc(resize_bilinear(heatmap, WIDTH, HEIGHT), target)))
    finally:
        torch.set_num_threads(threads)
    low, middle, high = (1000 * value for value in statistics.quantiles(quick, n=4))
    base = 1000 * statistics.median(slow)
    return {
        "kind": name, "annotators": annotators, "reference_ms": round(base, 2), "median_ms": round(middle, 3),
        "quartiles_ms": [round(low, 3), round(high, 3)], "ratio": round(base / middle, 1), "largest_difference": max(differences),
    }


def _split(heads: int) -> dict[str, Any]:
    """Everything that the metrics do for a split of ``heads`` heads: AUC, distances, in/out; without intervals."""
    import time

    import numpy as np

    from distill.console import progress
    from distill.metrics import HeadTruth, MetricAccumulator

    generator = np.random.default_rng(1)
    accumulator = MetricAccumulator("gazefollow")
    names, shares = [name for name, _, _ in KINDS], np.array([share for _, _, share in KINDS])
    seconds = 0.0
    with progress("Scoring a split", total=heads, unit="heads") as bar:
        for first in range(0, heads, 32):
            count = min(32, heads - first)
            maps = np.stack([draw(names[kind], generator) for kind in generator.choice(len(names), count, p=shares)])
            logits = np.log(maps / (1 - maps)).astype(np.float32)
            truths = [HeadTruth(generator.random((int(generator.integers(6, 11)), 2)), 1, WIDTH, HEIGHT, str(first + k)) for k in range(count)]
            began = time.process_time()
            accumulator.add(logits, generator.standard_normal(count), truths)
            seconds += time.process_time() - began
            bar.update(count)
    began = time.process_time()
    accumulator.result()
    seconds += time.process_time() - began
    each = seconds / heads
    return {
        "heads": heads, "cpu_s": round(seconds, 2), "ms_per_head": round(1000 * each, 3),
        "test_split_s": round(each * HEADS, 2), "bar_s": SECONDS_BAR,
    }


def draw(kind: str, generator: np.random.Generator) -> np.ndarray:
    """A probability map ``[64,64]``: ``peaks`` (a few sharp ones over ripple), ``smooth`` (a wide one) or ``noisy`` (every cell its own)."""
    import numpy as np

    from distill.metrics import sigmoid

    if kind == "noisy":
        return sigmoid(2.0 * generator.standard_normal((64, 64)) - 2.0)
    y, x = np.mgrid[0:64, 0:64] / 64
    logits = np.full((64, 64), -7.0)
    wide, count, ripple = (0.3, 1, 0.0) if kind == "smooth" else (0.06, 3, 0.1)
    for _ in range(count):
        cx, cy = generator.random(2)
        logits += 9 * generator.random() * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * wide**2))
    return sigmoid(logits + ripple * generator.standard_normal((64, 64)))

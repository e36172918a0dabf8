"""Evidence extraction in GB/s, against a plain NumPy pass over the same bytes and the paper's split-and-scale features.

The plain pass is one float64 subtraction and sum of squares for each probe over the arrays that the extraction is
given: log-probabilities (float32) and reference (float64) of all slots; their bytes are what GB/s counts. Target: at
least 0.3 of it. The extraction itself uses the top-k of the slots alone, so a second line, without a target, compares
it with the same pass over those values, gathered beforehand.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
from timing import Row, parser, show, timed

from hspi.evidence.aligned import Aligned
from hspi.evidence.distribution import hspi_ld
from hspi.evidence.replay import pair_statistics
from hspi.evidence.residual import statistics_of
from hspi.platforms.record import Platform
from hspi.reference.logits import SLOTS


def made_up(platforms: int = 20, settings: int = 4, probes: int = 288, slots: int = SLOTS, stored: int = 64) -> Aligned:
    """Noise in the shapes of the pipeline's own features: time does not depend on the values."""
    rng = np.random.default_rng(0)
    reference = np.sort(-rng.exponential(4, (probes, slots)))[:, ::-1].copy()
    noise = 1e-5 * rng.standard_normal((platforms, settings, probes, slots))
    logprobs = (reference + noise).astype(np.float32)
    logprobs[..., stored:] = np.nan
    rank = np.full(logprobs.shape, 255, np.uint8)
    rank[..., :stored] = np.arange(stored)
    records = [Platform(f"made-up-{i}", "none", "emulated") for i in range(platforms)]
    names = [("text", i) for i in range(probes)]
    place = np.broadcast_to(np.arange(slots, dtype=np.int32), (probes, slots)).copy()
    classes = [{f"b{i}": str(i) for i in range(1, settings + 1)}] * platforms
    return Aligned("none", records, classes, names, place, reference, logprobs, rank, logprobs[..., :stored])


def plain(values: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Sum of squared differences of each probe: values float32 (n, P, k), origin (P, k) or (n, P, k) → (n, P)."""
    difference = values.astype(np.float64) - origin
    return np.einsum("npk,npk->np", difference, difference)


def split_and_scale(values: np.ndarray) -> np.ndarray:
    """The paper's features of (n, k) log-probabilities, standardised as its scaler does."""
    x = hspi_ld(values[:, None, :], batch=4)
    spread = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(spread > 0, spread, 1)


def measure(args: Namespace, data: Aligned, k: int) -> list[Row]:
    c, s, p, slots = data.logprobs.shape
    whole = data.logprobs.reshape(c * s, p, slots)
    ranks = data.rank.reshape(c * s, p, slots)
    gathered = np.ascontiguousarray(whole[..., :k])
    reference = np.ascontiguousarray(data.reference[:, :k])
    work = {
        "residual": lambda: statistics_of(data, k),
        "pairs": lambda: pair_statistics(whole[0], ranks[0], whole, ranks, data.reference, k),
        "plain": lambda: plain(whole, data.reference),
        "gathered": lambda: plain(gathered, reference),
        "paper": lambda: split_and_scale(gathered.reshape(c * s * p, k)),
    }
    found = timed(work, args.repeats, args.clock)
    size = whole.nbytes + data.reference.nbytes
    speed = {name: f"{size / took / 1e9:.3f} GB/s" for name, took in found.seconds.items()}
    rows = []
    for name in ("residual", "pairs"):
        for other, words, target in (
            ("plain", "a plain pass", ">= 0.3"),
            ("gathered", "a plain pass over the top-k, gathered", ""),
            ("paper", "the paper's features", ""),
        ):
            about = f"{name} statistics / {words}, top-{k} of {slots}"
            rows.append(Row(about, speed[name], speed[other], found.ratio(other, name), target))
    return rows


def main() -> None:
    p = parser(__doc__ or "", repeats=5)
    p.add_argument("--features", type=Path, help="a file that `hspi featurize` wrote (default: noise of that shape)")
    p.add_argument("--top-k", type=int, nargs="+", default=[5, 20])
    args = p.parse_args()
    data = Aligned.load(args.features) if args.features else made_up()
    show([row for k in args.top_k for row in measure(args, data, k)], args.json)


if __name__ == "__main__":
    main()

"""What collecting costs over the bare forward passes: the same batches through the same adapter, with and without
top-k, journal and Parquet. Target: at most 10 % more."""

from __future__ import annotations

import shutil
import tempfile
from argparse import Namespace
from pathlib import Path

from timing import Row, Timed, parser, show, timed

from hspi import params, probes, zoo
from hspi.platforms import catalogue
from hspi.platforms.opening import open_adapter
from hspi.platforms.record import Adapter, Nuisance
from hspi.probes import ProbeSet
from hspi.quiet import be_quiet
from hspi.signatures.collect import batches, collect_one
from hspi.signatures.schema import Header


def forward_only(adapter: Adapter, probe_set: ProbeSet, nuisance: Nuisance) -> None:
    for ids, _ in batches(probe_set.spec.size, nuisance):
        adapter.logprobs([probe_set.contexts[i] for i in ids], probe_set.spec.positions)


def collected(adapter: Adapter, probe_set: ProbeSet, header: Header) -> None:
    folder = Path(tempfile.mkdtemp(prefix="hspi-bench-"))
    try:
        collect_one(adapter, header, probe_set, folder / "signature.parquet")
    finally:
        shutil.rmtree(folder)


def compare(args: Namespace, adapter: Adapter, ref: zoo.ModelRef, probe_set: ProbeSet, batch: int) -> Row:
    spec, nuisance = probe_set.spec, Nuisance(f"b{batch}", batch)
    header = Header(
        catalogue.get(args.platform), ref.id, ref.weights_hash, spec.name, probe_set.hash, nuisance, spec.positions,
        spec.top_k,
    )  # fmt: skip
    work = {
        "bare": lambda: forward_only(adapter, probe_set, nuisance),
        "collected": lambda: collected(adapter, probe_set, header),
    }
    found: Timed = timed(work, args.repeats, args.clock)
    rate = {k: f"{1e3 * v / spec.size:.2f} ms/probe" for k, v in found.seconds.items()}
    name = f"collect / forward: {args.platform}, {ref.id}, {spec.name} {spec.positions}×{spec.top_k}, batch {batch}"
    return Row(name, rate["collected"], rate["bare"], found.ratio("collected", "bare"), "<= 1.10")


def main() -> None:
    p = parser(__doc__ or "", repeats=7)
    p.add_argument("--platform", default="torch-fp32")
    p.add_argument("--model", default="llama")
    p.add_argument("--batch-size", type=int, nargs="+", default=[1, 16])
    args = p.parse_args()
    be_quiet()
    ref = zoo.resolve(args.model)
    adapter = open_adapter(catalogue.get(args.platform), ref.path)
    known, tokenizer = params.load(), zoo.load_tokenizer(ref)
    sets = [probes.build(known.probes.spec(name), tokenizer) for name in known.probes.sets]
    rows = [compare(args, adapter, ref, s, b) for s in sets for b in args.batch_size]
    show(rows, args.json)


if __name__ == "__main__":
    main()

"""A whole zoo model on the chip beside the same model on its virtual twin, plan by plan."""

from __future__ import annotations

from typing import Any

import numpy as np

from hspi import params, probes, zoo
from hspi.platforms.catalogue import get
from hspi.platforms.opening import open_adapter
from hspi.platforms.record import Adapter
from hspi.platforms.virtual.catalogue import VIRTUAL
from hspi.platforms.virtual.plans import PLANS, PlanBook

PROBES = 32


def compare_model(architecture: str, model: str, dtype: str) -> Any:
    """Share of log-probabilities with the same bits under each uniform plan, and the share of probes with all.

    dtype: `fp16` or `bf16`; `cuda-<dtype>-eager` serves the model on the chip.
    """
    ref = zoo.resolve(model)
    contexts = list(probes.build(params.load().probes.spec("text"), zoo.load_tokenizer(ref)).contexts[:PROBES])
    served: Adapter = open_adapter(get(f"cuda-{dtype}-eager"), ref.path)
    truth = served.logprobs(contexts, 1)
    record = next(p for p in VIRTUAL if p.options["architecture"] == architecture and f"-{dtype}-" in p.id)
    twin: Any = open_adapter(record, ref.path)
    rows = {}
    for name in PLANS:
        twin.book = PlanBook(name)
        equal = twin.logprobs(contexts, 1) == truth
        rows[name] = {"values": float(equal.mean()), "probes": float(np.mean(equal.all(axis=(1, 2))))}
    return {"model": model, "dtype": dtype, "plans": rows, "best": max(rows, key=lambda n: rows[n]["values"])}

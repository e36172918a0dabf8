"""A whole zoo model on the chip beside the same model on its virtual twin, plan by plan."""

from __future__ import annotations

from typing import Any

import numpy as np

from hspi import params, probes, zoo
from hspi.platforms.catalogue import get
from hspi.platforms.opening import open_adapter
from hspi.platforms.record import Adapter, Platform
from hspi.platforms.virtual.catalogue import VIRTUAL
from hspi.platforms.virtual.plans import PLANS, PlanBook


def compare_model(architecture: str, model: str, dtype: str, real: Platform | None = None, count: int = 32) -> Any:
    """Share of log-probabilities with the same bits under each uniform plan, and the share of probes with all.

    real: what serves the model on the chip (default: `cuda-<dtype>-eager`); dtype `fp16` or `bf16`.
    """
    ref = zoo.resolve(model)
    contexts = list(probes.build(params.load().probes.spec("text"), zoo.load_tokenizer(ref)).contexts[:count])
    served: Adapter = open_adapter(real or get(f"cuda-{dtype}-eager"), ref.path)
    truth = served.logprobs(contexts, 1)
    record = next(p for p in VIRTUAL if p.options["architecture"] == architecture and f"-{dtype}-" in p.id)
    twin: Any = open_adapter(record, ref.path)
    rows = {}
    for name in PLANS:
        twin.book = PlanBook(name)
        equal = twin.logprobs(contexts, 1) == truth
        rows[name] = {"values": float(equal.mean()), "probes": float(np.mean(equal.all(axis=(1, 2))))}
    return {"model": model, "dtype": dtype, "plans": rows, "best": max(rows, key=lambda n: rows[n]["values"])}

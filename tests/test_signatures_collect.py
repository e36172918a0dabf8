"""Collection: every probe once, and a kill at any moment costs no probe that stands in the journal."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hspi.errors import HspiError, PlatformError
from hspi.platforms.record import Nuisance, Platform
from hspi.probes import ProbeSet, ProbeSpec, content_hash
from hspi.signatures import collect as collecting
from hspi.signatures.schema import Header, read_signature
from hspi.signatures.store import iter_store

SPEC = ProbeSpec("tokens", "tokens", size=23, length=6, seed=0, positions=2, top_k=5)
VOCAB = 40
PAUSE = 0.02  # seconds that the engine below takes for a batch, where it is killed


class Served:
    """An engine of our own whose answers depend on the company in the batch, as real ones' do. It keeps a diary."""

    vocab_size = VOCAB

    def __init__(self, diary: Path | None = None, pause: float = 0.0, fail_after: int | None = None) -> None:
        self.diary, self.pause, self.fail_after, self.calls = diary, pause, fail_after, 0

    def logprobs(self, contexts: list[npt.NDArray[np.int64]], positions: int) -> npt.NDArray[np.float32]:
        import time

        if self.calls == self.fail_after:
            raise RuntimeError("the engine died")
        self.calls += 1
        time.sleep(self.pause)
        company = int(sum(c.sum() for c in contexts)) % 1000
        rows = [np.random.default_rng([int(c[0]), company]).normal(size=(positions, VOCAB)) for c in contexts]
        if self.diary:
            with self.diary.open("a") as f:
                f.write(json.dumps([int(c[0]) for c in contexts]) + "\n")
        return np.stack(rows).astype(np.float32)

    def greedy(self, contexts: list[Any], new_tokens: int) -> npt.NDArray[np.int64]:
        raise NotImplementedError

    def facts(self) -> dict[str, str]:
        return {}


def probe_set() -> ProbeSet:
    """The first token of probe i is i."""
    contexts = np.random.default_rng(0).integers(0, VOCAB, (SPEC.size, SPEC.length))
    contexts[:, 0] = np.arange(SPEC.size)
    return ProbeSet(SPEC, contexts, content_hash("tokens", contexts))


def header(nuisance: Nuisance) -> Header:
    return Header(
        *(Platform("p", "e"), "m", "w", "tokens", probe_set().hash, nuisance),
        positions=SPEC.positions,
        top_k=SPEC.top_k,
    )


NUISANCES = [
    Nuisance("b1"),
    Nuisance("b4", 4),
    Nuisance("b5", 5, "shuffled", 3),
    Nuisance("b99", 99, "shuffled", 1),
]


# ---------------------------------------------------------------- batches


@given(st.integers(1, 200), st.integers(1, 50), st.sampled_from(["ordered", "shuffled"]), st.integers(0, 99))
def test_every_probe_is_served_exactly_once(size: int, batch: int, company: Any, seed: int) -> None:
    nuisance = Nuisance("n", batch, company, seed)
    served = [ids.tolist() for ids in collecting.batches(size, nuisance)]
    order = [i for b in served for i in b]
    assert sorted(order) == list(range(size))
    assert all(len(b) == batch for b in served[:-1]) and 1 <= len(served[-1]) <= batch
    assert served == [ids.tolist() for ids in collecting.batches(size, nuisance)], "the same on a second start"
    if company == "ordered":
        assert order == list(range(size))


def test_company_is_shuffled_by_its_seed() -> None:
    plans = [
        [b.tolist() for b in collecting.batches(40, Nuisance("n", 7, company, seed))]
        for company, seed in (("ordered", 0), ("shuffled", 1), ("shuffled", 2))
    ]
    assert plans[0] != plans[1] != plans[2]


# ---------------------------------------------------------------- resuming


@pytest.mark.parametrize("nuisance", NUISANCES, ids=lambda n: n.name)
def test_an_engine_that_dies_costs_its_batch_alone(nuisance: Nuisance, tmp_path: Path) -> None:
    total = len(list(collecting.batches(SPEC.size, nuisance)))
    whole = collecting.collect_one(Served(), header(nuisance), probe_set(), tmp_path / "whole.parquet")
    path = tmp_path / "s.parquet"
    for _ in range(total - 1):  # serves one batch and dies on the next, again and again
        engine = Served(fail_after=1)
        with pytest.raises(RuntimeError):
            collecting.collect_one(engine, header(nuisance), probe_set(), path)
        assert engine.calls == 1 and not path.exists()
    ticks: list[int] = []
    last = Served()
    assert collecting.collect_one(last, header(nuisance), probe_set(), path, ticks.append) == path
    assert last.calls == 1 and sum(ticks) == SPEC.size
    assert path.read_bytes() == whole.read_bytes()


_SERVE = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_signatures_collect as t
out, number = Path(sys.argv[1]), int(sys.argv[2])
n = t.NUISANCES[number]
print("started", flush=True)
t.collecting.collect_one(t.Served(out / "diary", pause=t.PAUSE), t.header(n), t.probe_set(), out / "s.parquet")
"""


def test_a_process_killed_at_random_moments_ends_with_the_undisturbed_bits(tmp_path: Path) -> None:
    """SIGKILL, again and again, until a run reaches the end."""
    rng = random.Random(1)
    script = _SERVE.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(tmp_path), "0"]
    kills = 0
    for delay in (rng.uniform(0.0, 0.24) for _ in range(4)):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stdout.readline() == "started\n"
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                kills += 1
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert kills >= 2, "the moments must fall inside the work"
    undisturbed = collecting.collect_one(Served(), header(NUISANCES[0]), probe_set(), tmp_path / "u" / "s.parquet")
    assert (tmp_path / "s.parquet").read_bytes() == undisturbed.read_bytes()
    served = (tmp_path / "diary").read_text().splitlines()
    assert {json.loads(line)[0] for line in served} == set(range(SPEC.size))
    lost = 1 + math.ceil(collecting.HELD_SECONDS / PAUSE)  # the batch in flight, and those that were held
    assert len(served) <= SPEC.size + kills * lost, "no kill may cost more than what was not in the journal yet"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["diary", "s.parquet", "u"]


# ---------------------------------------------------------------- what is finished, and what cannot run


def test_finished_means_the_same_probes_weights_platform_and_nuisance(tmp_path: Path) -> None:
    nuisance = NUISANCES[1]
    job = collecting.Job(Platform("p", "e"), "m", SPEC, nuisance, tmp_path)
    right = ("w", probe_set().hash)
    assert not collecting.is_finished(job, *right)
    collecting.collect_one(Served(), header(nuisance), probe_set(), job.path)
    assert collecting.is_finished(job, *right)
    assert not collecting.is_finished(job, "other", right[1])
    assert not collecting.is_finished(job, right[0], "other")
    for change in (
        {"platform": Platform("p", "e", dtype="bf16")},
        {"nuisance": replace(nuisance, batch_size=5)},
        {"spec": replace(SPEC, top_k=6)},
        {"spec": replace(SPEC, positions=1)},
    ):
        assert not collecting.is_finished(replace(job, **change), *right)  # type: ignore[arg-type]
    job.path.write_bytes(job.path.read_bytes()[:100])
    assert not collecting.is_finished(job, *right)


def test_what_is_finished_is_not_made_again_and_stale_journals_go(tmp_path: Path) -> None:
    """The model's weights are no weights, so that opening an engine would fail."""
    from hspi import probes, zoo
    from hspi.platforms import catalogue

    folder, store = tmp_path / "m", tmp_path / "s"
    save_tokenizer(folder)
    (folder / "config.json").write_text('{"vocab_size": 300, "architectures": ["None"]}')
    (folder / "model.safetensors").write_bytes(b"none")
    ref, platform = zoo.resolve(str(folder)), catalogue.get("torch-fp32")
    spec = replace(SPEC, size=5)
    made = probes.build(spec, zoo.load_tokenizer(ref))
    made = replace(made, contexts=made.contexts % VOCAB)
    for n in NUISANCES[:2]:
        own = replace(header(n), platform=platform, model=ref.id, weights_hash=ref.weights_hash, probe_hash=made.hash)
        collecting.collect_one(Served(), own, made, collecting.Job(platform, ref.id, spec, n, store).path)
    paths = list(iter_store(store))
    before = [p.read_bytes() for p in paths]
    stale = paths[0].with_name(paths[0].name + ".partial")  # killed between the rename and the end
    stale.write_bytes(b"stale")
    ticks: list[int] = []
    found = collecting.collect_platform("torch-fp32", [str(folder)], [spec], NUISANCES[:2], store, ticks.append)
    assert sorted(found) == paths and [p.read_bytes() for p in paths] == before and ticks == [5, 5]
    assert not stale.exists()
    with pytest.raises(HspiError):
        collecting.collect_platform("torch-fp32", [str(folder)], [spec], NUISANCES, store)


def test_a_platform_that_cannot_run_here_makes_nothing(tmp_path: Path) -> None:
    from hspi.platforms import catalogue, machine

    lacking = next(p for p in catalogue.CATALOGUE.values() if not machine.availability(p).runnable)
    with pytest.raises(PlatformError, match=f"{lacking.id} must be runnable on this machine"):
        collecting.collect_platform(lacking.id, ["llama"], [SPEC], NUISANCES, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_child_s_error_is_raised_as_its_own_line(tmp_path: Path) -> None:
    absent = [str(tmp_path / "absent-a"), str(tmp_path / "absent-b")]
    with pytest.raises(PlatformError, match=r"absent-[ab]") as caught:
        collecting.collect_platform("torch-fp32", absent, [SPEC], NUISANCES, tmp_path, processes=2)
    assert len(str(caught.value).splitlines()) == 1
    assert not list(iter_store(tmp_path))


# ---------------------------------------------------------------- the real thing

PARAMS = """
models: []
probes: {seed: 1, length: 8, sets: {tokens: {size: 80, top_k: 20}, words: {size: 20, positions: 4, top_k: 10}}}
nuisances: [{name: b1}, {name: b3, batch_size: 3, company: shuffled, seed: 3}]
"""


def save_tokenizer(folder: Path) -> None:
    """300 whole words."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers import models as kinds
    from transformers import PreTrainedTokenizerFast

    from hspi import probes

    known = {"<unk>": 0} | {w: i + 1 for i, w in enumerate(probes._words()[:299])}
    words = Tokenizer(kinds.WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two random models of one layer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    for seed in (0, 1):
        torch.manual_seed(seed)
        LlamaForCausalLM(LlamaConfig(vocab_size=300, **shape)).save_pretrained(folder / f"m{seed}")
        save_tokenizer(folder / f"m{seed}")
    return [folder / "m0", folder / "m1"]


def command(models: list[Path], folder: Path, *more: str) -> list[str]:
    (folder / "params.yaml").write_text(PARAMS)
    made = [sys.executable, "-m", "hspi", "collect", "--platform", "torch-fp32", "--out", str(folder / "s")]
    made += ["--params", str(folder / "params.yaml"), "--progress", "json", *more]
    return made + [a for m in models for a in ("--model", str(m))]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_collect_killed_at_random_moments_ends_with_the_undisturbed_bits(
    models: list[Path], jobs: str, tmp_path: Path
) -> None:
    """With two jobs the parent alone is killed: its children are orphans and must do no harm to the next run."""
    rng = random.Random(int(jobs))
    (tmp_path / "calm").mkdir()
    (tmp_path / "rough").mkdir()
    calm = command(models, tmp_path / "calm", "--jobs", jobs)
    lines = subprocess.run(calm, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    rough = command(models, tmp_path / "rough", "--jobs", jobs)
    for _ in range(3):
        with subprocess.Popen(rough, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(rng.randrange(1, max(2, len(lines) // 4))):
                if not process.stdout.readline():
                    break
            process.send_signal(signal.SIGKILL)
    ended = subprocess.run(rough, capture_output=True, text=True)
    if ended.returncode:  # the one way that an orphan may show: it is noticed, nothing is wrong, a rerun ends well
        assert "one writer" in ended.stderr
        subprocess.run(rough, check=True, stdout=subprocess.DEVNULL)
    a, b = (list(iter_store(tmp_path / x / "s")) for x in ("calm", "rough"))
    assert len(a) == 2 * 2 * 2
    assert [p.relative_to(tmp_path / "calm") for p in a] == [p.relative_to(tmp_path / "rough") for p in b]
    for one, other in zip(a, b, strict=True):
        x, y = read_signature(one), read_signature(other)
        assert x.header.same_work(y.header)
        assert len(x) == 80
        for name in ("probe_id", "position", "token_id", "topk_ids", "topk_logprobs"):
            assert getattr(x, name).tobytes() == getattr(y, name).tobytes(), (one, name)
    left = [p.name for p in (tmp_path / "rough" / "s").rglob("*") if p.is_file() and p.suffix != ".parquet"]
    assert left == [], "no journal stays behind"

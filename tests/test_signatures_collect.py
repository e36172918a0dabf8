"""Collection: every probe once, and a kill at any moment costs no probe that stands in the journal."""

from __future__ import annotations

import json
import math
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
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
from hspi.signatures.batch_classes import UNSTEADY, BatchClasses
from hspi.signatures.schema import Header, Signature, read_header, read_signature
from hspi.signatures.store import iter_store
from written import write

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
    served = [(ids.tolist(), own) for ids, own in collecting.batches(size, nuisance)]
    order = [i for ids, own in served for i in ids[:own]]
    assert sorted(order) == list(range(size))
    assert all(len(ids) == batch for ids, _ in served), "fewer would be another batch size, and perhaps other kernels"
    assert all(own == batch for _, own in served[:-1]) and 1 <= served[-1][1] <= batch
    filling = served[-1][0][served[-1][1] :]
    assert filling == (order * batch)[: len(filling)], "what fills the last one was served before, or serves twice"
    assert served == [(ids.tolist(), own) for ids, own in collecting.batches(size, nuisance)], "again on a second start"
    if company == "ordered":
        assert order == list(range(size))


def test_company_is_shuffled_by_its_seed() -> None:
    plans = [
        [ids.tolist() for ids, _ in collecting.batches(40, Nuisance("n", 7, company, seed))]
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
    job = collecting.Job(Platform("p", "e"), "cpu", "m", SPEC, nuisance, tmp_path)
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
    from hspi.platforms import catalogue, machine

    folder, store = hollow_model(tmp_path / "m"), tmp_path / "s"
    ref, platform = zoo.resolve(str(folder)), catalogue.get("torch-fp32")
    here = machine.hardware_here(platform).id
    spec = replace(SPEC, size=5)
    made = probes.build(spec, zoo.load_tokenizer(ref))
    made = replace(made, contexts=made.contexts % VOCAB)
    for n in NUISANCES[:2]:
        own = replace(header(n), platform=platform, model=ref.id, weights_hash=ref.weights_hash, probe_hash=made.hash)
        collecting.collect_one(Served(), own, made, collecting.Job(platform, here, ref.id, spec, n, store).path)
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


# ---------------------------------------------------------------- batch classes


class Kernels:
    """A server with kernels by batch size: its answers hang on the context and on which kernel runs."""

    def __init__(self, kernel: Callable[[int], int], company: bool = False, fail_after: int | None = None) -> None:
        self.kernel, self.company, self.fail_after, self.sizes = kernel, company, fail_after, list[int]()

    def logprobs(self, contexts: list[npt.NDArray[np.int64]], positions: int) -> npt.NDArray[np.float32]:
        if len(self.sizes) == self.fail_after:
            raise RuntimeError("killed")
        self.sizes.append(len(contexts))
        extra = int(sum(c.sum() for c in contexts)) if self.company and len(contexts) > 1 else 0
        kernel = self.kernel(len(contexts))
        rows = [np.random.default_rng([*c, kernel, extra]).normal(size=(positions, VOCAB)) for c in contexts]
        return np.stack(rows).astype(np.float32)

    def greedy(self, contexts: list[Any], new_tokens: int) -> npt.NDArray[np.int64]:
        raise NotImplementedError

    def facts(self) -> dict[str, str]:
        return {"server": "made up"}

    vocab_size = VOCAB


AMX = {"b1": "1-2 16-64", "b3": "3-15"}  # as torch's in bf16 on an AMX Xeon


def amx(size: int) -> int:
    return int(3 <= size <= 15)


SPECS = [ProbeSpec(kind, kind, size=70, length=6, seed=0, positions=1, top_k=5) for kind in ("tokens", "words")]


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(hollow_model(tmp_path_factory.mktemp("hollow") / "m"))


def hollow_model(folder: Path) -> Path:
    """A model whose weights are no weights."""
    save_tokenizer(folder)
    (folder / "config.json").write_text('{"vocab_size": 300, "architectures": ["None"]}')
    (folder / "model.safetensors").write_bytes(b"none")
    return folder


def collected(server: Kernels, model: str, root: Path, settings: Sequence[Nuisance] = ()) -> list[Signature]:
    ticks, expected = list[int](), list[int]()
    order = collecting.Order(Platform("p", "e"), "rig", SPECS, settings, root, ticks.append, expected.append)
    paths = collecting.collect_model(order, model, lambda platform, path, threads: server)
    assert sum(ticks) == max(len(settings), 1) * 140 + sum(expected), "a bar ends where it was told to"
    return [read_signature(p) for p in paths]


def test_each_batch_class_gets_one_signature_for_each_set(hollow: str, tmp_path: Path) -> None:
    server = Kernels(amx)
    found = collected(server, hollow, tmp_path)
    assert all(s.header.batch_classes == BatchClasses(AMX) for s in found)
    named = [(s.header.probe_set, s.header.nuisance.name, s.header.nuisance.batch_size) for s in found]
    assert named == [(kind, f"b{n}", n) for kind in ("tokens", "words") for n in (1, 3)]
    assert all(len(s) == 70 and s.header.hardware.id == "cpu" for s in found)
    assert [p.relative_to(tmp_path).as_posix() for p in iter_store(tmp_path)] == [
        f"rig/p/m/{kind}.b{n}.parquet" for kind in ("tokens", "words") for n in (1, 3)
    ]
    assert found[0].topk_logprobs.tobytes() != found[1].topk_logprobs.tobytes()


def test_one_class_is_one_signature_and_sizes_that_are_given_are_not_looked_at(hollow: str, tmp_path: Path) -> None:
    (one, _) = collected(Kernels(lambda size: 0), hollow, tmp_path / "a")
    assert one.header.batch_classes == BatchClasses({"b1": "1-64"}) and one.header.nuisance == Nuisance("b1")
    given_ = [Nuisance("b1"), Nuisance("b7", 7, "shuffled", 7)]
    server = Kernels(lambda size: 0)
    found = collected(server, hollow, tmp_path / "b", given_)
    assert [s.header.nuisance for s in found] == given_ * 2 and not any(s.header.batch_classes for s in found)
    assert set(server.sizes) == {1, 7}, "every batch is full"


def test_who_answers_by_company_is_collected_alone_and_in_three_companies(hollow: str, tmp_path: Path) -> None:
    found = collected(Kernels(lambda size: 0, company=True), hollow, tmp_path)
    classes = found[0].header.batch_classes
    assert classes is not None and not classes.steady and 0 < classes.spread <= 1
    assert [s.header.nuisance.batch_size for s in found] == [*UNSTEADY] * 2


def test_what_was_found_is_not_sought_again(hollow: str, tmp_path: Path) -> None:
    first = Kernels(amx)
    before = [s.topk_logprobs.tobytes() for s in collected(first, hollow, tmp_path)]
    done = Kernels(amx)
    collected(done, hollow, tmp_path)
    assert done.sizes == []
    (tmp_path / "rig/p/m/words.b3.parquet").unlink()
    again = Kernels(amx)
    assert [s.topk_logprobs.tobytes() for s in collected(again, hollow, tmp_path)] == before
    assert again.sizes == [3] * 24
    changed = Kernels(amx)
    for path in iter_store(tmp_path):  # other weights' classes are not these
        one = read_header(path)
        path.unlink()
        write(path, [[0]], replace(one, weights_hash="other", positions=2, top_k=3))
    collected(changed, hollow, tmp_path)
    assert len(set(changed.sizes)) > 10


@pytest.mark.parametrize("when", ["in the search", "in the first signature", "in the second"])
def test_a_kill_leaves_nothing_half_written_and_the_next_start_ends_alike(
    hollow: str, when: str, tmp_path: Path
) -> None:
    calm = Kernels(amx)
    undisturbed = collected(calm, hollow, tmp_path / "calm")
    searching = len(calm.sizes) - 2 * (70 + 24)
    at = {"in the search": searching // 2, "in the first signature": searching + 30, "in the second": searching + 80}
    with pytest.raises(RuntimeError):
        collected(Kernels(amx, fail_after=at[when]), hollow, tmp_path / "rough")
    assert len(list(iter_store(tmp_path / "rough"))) == (when == "in the second")
    if when == "in the search":
        assert not [p for p in (tmp_path / "rough").rglob("*") if p.is_file()]
    last = Kernels(amx)
    found = collected(last, hollow, tmp_path / "rough")
    for a, b in zip(found, undisturbed, strict=True):
        assert a.header.same_work(b.header) and a.topk_logprobs.tobytes() == b.topk_logprobs.tobytes()
    spared = {"in the search": 0, "in the first signature": 30, "in the second": searching + 80}
    assert len(last.sizes) <= len(calm.sizes) - spared[when] + 1
    assert not list((tmp_path / "rough").rglob("*.partial"))


# ---------------------------------------------------------------- the real thing

PARAMS = """
models: []
probes: {seed: 1, length: 8, sets: {tokens: {size: 80, top_k: 20}, words: {size: 20, positions: 4, top_k: 10}}}
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
    classes = [read_header(p).batch_classes for p in a]
    assert all(classes) and len(a) == 2 * sum(
        {p.parent: len(c.sizes) for p, c in zip(a, classes, strict=True) if c}.values()
    )
    assert [p.relative_to(tmp_path / "calm") for p in a] == [p.relative_to(tmp_path / "rough") for p in b]
    for one, other in zip(a, b, strict=True):
        x, y = read_signature(one), read_signature(other)
        assert x.header.same_work(y.header)
        assert len(x) == 80
        for name in ("probe_id", "position", "token_id", "topk_ids", "topk_logprobs"):
            assert getattr(x, name).tobytes() == getattr(y, name).tobytes(), (one, name)
    left = [p.name for p in (tmp_path / "rough" / "s").rglob("*") if p.is_file() and p.suffix != ".parquet"]
    assert left == [], "no journal stays behind"

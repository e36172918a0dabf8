"""The report on a made-up evaluation: its figures are a fixture and say nothing about any platform."""

from __future__ import annotations

import csv
import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT
from hspi import report
from hspi.errors import DataError
from hspi.evidence.aligned import Aligned
from hspi.platforms import catalogue
from hspi.platforms.record import Nuisance, Platform
from hspi.report.headlines import HEADLINES, rate
from hspi.report.hosts import hosts
from hspi.report.read import pair_matrix, read
from hspi.signatures.journal import write_table
from hspi.signatures.schema import Header, arrow_schema
from hspi.signatures.store import signature_path

ZEN, ICE, VIRTUAL, NEW = "amd-zen3", "intel-icelake", "virtual-h100", "my-gpu<script>alert(1)<b>"  # a hostile name
ADDED = f"{NEW}/my-vllm"  # a platform whose record came from elsewhere
TORCH = [f"{ZEN}/{s}" for s in ("torch-fp32", "torch-fp32-avx2", "torch-bf16", "torch-bf16-eager")]
REST = [f"{ICE}/torch-fp32", f"{ICE}/ct2-int8", f"{ZEN}/ort-fp32", f"{ZEN}/emulated-mxint8"]
IDS = [*TORCH, *REST, f"{VIRTUAL}/vgpu-h100-bf16-k1", ADDED]
HARD = (TORCH[2], TORCH[3], 0.91)
CURVES = {"accuracy_by_platform", "pair_accuracy", "accuracy_by_tokens", "open_set", "reliability", "by_factor"}
PNG = b"\x89PNG\r\n\x1a\n"


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def provenance(platform: str) -> str:
    known = catalogue.CATALOGUE.get(platform.rpartition("/")[2])
    return known.provenance if known else "real"


def made_up_tables(folder: Path, ids: list[str], hard: tuple[str, str, float], nearest: int = 10**6) -> None:
    """Two models; on the second, the first two platforms are one class. `hard` is the pair with the lowest accuracy.
    nearest: of how many that stand before it a platform was compared with."""
    rng = np.random.default_rng(0)
    pairs, classes = [], []
    for model in ("llama", "qwen3"):
        groups = [[p] for p in ids] if model == "llama" else [ids[:2], *([p] for p in ids[2:])]
        for g in groups:
            classes.append({"model": model, "class": g[0], "platforms": " ".join(g)})
        for i, a in enumerate(groups):
            for b in groups[max(0, i - nearest) : i]:
                value = hard[2] if model == "llama" and {a[0], b[0]} == set(hard[:2]) else 1 - rng.choice([0, 0, 1e-3])
                row = {"level": "replay", "split": "probes", "model": model, "platform_a": a[0], "platform_b": b[0]}
                pairs.append(row | {"accuracy": value, "ci_low": 0.9, "ci_high": 1, "n": 96})
    write_csv(folder / "pair_accuracy.csv", pairs)
    write_csv(folder / "classes.csv", classes)
    write_csv(folder / "accuracy_by_platform.csv", platform_rows(ids, rng))
    spans = [
        {"model": m, "class": ids[0], "platforms": f"{ids[0]} {ids[4]}", "hardware": f"{ZEN} {ICE}"}
        for m in ("llama", "qwen3")
    ]
    write_csv(folder / "spans.csv", spans)
    asked = [("named, given its signatures", 0.99), ("said to be unknown, without them", 0.9)]
    held_out = [
        {"hardware": h, "question": q, "value": a, "ci_low": a - 0.02, "ci_high": a, "n": 640}
        for h in dict.fromkeys(p.rpartition("/")[0] for p in ids)
        for q, a in asked
    ]
    write_csv(folder / "hardware.csv", held_out)
    grid = [(level, n, k) for level in ("replay", "nearest") for k in (5, 20) for n in (1, 2, 4, 8, 16, 32)]
    rows = []
    for level, n, k in grid:
        value = 1 - (0.1 if level == "replay" else 0.25) / n * (20 / k) ** 0.5
        row = {"level": level, "probes": n, "top_k": k, "tokens": n, "accuracy": value, "chance": 1 / len(ids)}
        rows.append(row | {"ci_low": value - 0.02, "ci_high": min(1, value + 0.01)})
    write_csv(folder / "accuracy_by_tokens.csv", rows)
    bins = [(0.35, 0.4, 12), (0.55, 0.6, 40), (0.85, 0.83, 90), (0.99, 0.995, 4000)]
    write_csv(folder / "reliability.csv", [{"confidence": c, "accuracy": a, "count": n} for c, a, n in bins])
    scores = [(s, 1) for s in rng.normal(6, 2, 200)] + [(s, 0) for s in rng.normal(-5, 2, 200)]
    write_csv(folder / "open_set.csv", [{"score": s, "is_known": k} for s, k in scores])
    factors = [
        ("hardware", ZEN, 1.0),
        ("hardware", VIRTUAL, 0.99),
        ("engine", "pytorch", 1.0),
        ("engine", "onnx", 0.995),
        ("provenance", "real", 0.97),
    ]
    write_csv(folder / "by_factor.csv", [{"factor": f, "value": v, "accuracy": a} for f, v, a in factors])
    worst = {"worst_platform": ids[3], "worst_class": "b2"}
    alarms = [
        {"alpha": a, "rate": a / 2, "ci_low": 0, "ci_high": 2 * a, "n": 400, "worst": 0.75 * a, "worst_upper": 0.9 * a}
        for a in (0.01, 0.05)
    ]
    write_csv(folder / "false_alarm.csv", [row | worst for row in alarms])


def platform_rows(ids: list[str], rng: np.random.Generator) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for p in ids:
        value = 1 - float(rng.choice([0, 0, 0, 0.004, 0.02]))
        row = {"hardware": p.rpartition("/")[0], "software": p.rpartition("/")[2], "provenance": provenance(p)}
        row |= {"accuracy": value, "ci_low": value - 0.03, "ci_high": min(1, value + 0.01), "chance": 0.125}
        rows.append(row | {"samples": 512, "tokens": 32, "held_out": "probes, batch class"})
    return rows


def made_up_metrics() -> dict[str, float]:
    metrics: dict[str, float] = {"platforms": 8, "classes": 7, "models": 2, "classes.llama": 8, "classes.qwen3": 7}
    for h in HEADLINES:
        value = 0.009 if h.at_most else 0.985
        metrics |= {h.key: value, f"{h.key}.ci_low": value - 0.005, f"{h.key}.ci_high": value + 0.001}
        metrics |= {f"{h.key}.chance": 0.125}
        metrics |= {name: 0.5 for name in (h.nearest, h.paper) if name}
    return metrics | {"replay.tokens_to_99": 8.0}


def made_up_features(folder: Path, ids: list[str]) -> None:
    rng = np.random.default_rng(0)
    c, s, p, slots, k = len(ids), 2, 6, 128, 64
    reference = np.sort(-rng.exponential(4, (p, slots)))[:, ::-1].copy()
    scale = 2.0 ** rng.uniform(-22, -6, c)
    residual = scale[:, None, None, None] * rng.standard_normal((c, 1, p, slots))
    logprobs = reference + residual + 0.05 * scale[:, None, None, None] * rng.standard_normal((c, s, p, slots))
    rank = np.full((c, s, p, slots), 255, np.uint8)
    rank[..., :k] = np.arange(k)
    split = [i.rpartition("/")[::2] for i in ids]
    known = [
        (catalogue.CATALOGUE.get(software) or Platform(software, "vllm", device="cuda", dtype="bf16")).on(hardware)
        for hardware, software in split
    ]
    place = np.broadcast_to(np.arange(slots, dtype=np.int32), (p, slots)).copy()
    values = logprobs.astype(np.float32)
    names = [("text", i) for i in range(p)]
    Aligned("llama", known, ["b1", "b5"], names, place, reference, values, rank, values[..., :k]).save(
        folder / "llama.safetensors"
    )


@pytest.fixture(scope="module")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("evaluation")
    made_up_tables(root / "tables", IDS, HARD)
    (root / "metrics.json").write_text(json.dumps(made_up_metrics()))
    made_up_features(root / "features", IDS)
    return root


@pytest.fixture(scope="module")
def built(made_up: Path) -> list[Path]:
    return report.build(made_up / "tables", made_up / "metrics.json", made_up / "features", made_up / "out")


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def page(built: list[Path]) -> Page:
    return Page(built[-1].read_text("utf-8"))


def test_every_table_has_its_picture(built: list[Path]) -> None:
    names = {p.stem for p in built if p.suffix == ".png"}
    assert names == CURVES | {"residuals_one_probe", "residual_sizes"}
    assert all(p.read_bytes().startswith(PNG) and p.stat().st_size > 5000 for p in built[:-1])
    assert built[-1].name == "report.html"


def test_the_page_loads_nothing_and_runs_nothing(page: Page) -> None:
    kinds = {tag for tag, _ in page.tags}
    assert not kinds & {"script", "link", "iframe", "object"}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    sources = [attrs["src"] or "" for tag, attrs in page.tags if tag == "img"]
    assert len(sources) == 8 and all(s.startswith("data:image/png;base64,") for s in sources)
    assert all((attrs["href"] or "").startswith("#") for tag, attrs in page.tags if tag == "a")
    assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")


def test_hostile_names_are_text(page: Page) -> None:
    assert ADDED in page.text  # parsed back from its escaped form, so it was never a tag


def test_the_page_says_what_was_held_out_and_what_is_not_real(page: Page) -> None:
    for words in ("held out", "capped", "emulated", "Held-out model", "Held-out hardware", "HSPI-LD", "chance"):
        assert words in page.text
    assert f"{ZEN}/emulated-mxint8 ○ emulated" in page.text and f"{ZEN}/torch-fp32-avx2 ◐ capped" in page.text
    assert f"{VIRTUAL} ○ emulated" in page.text, "a machine of which all is emulated says so itself"


def test_the_page_shows_what_the_mean_hides_and_which_classes_span_machines(page: Page) -> None:
    assert "worst class" in page.text and f"{TORCH[3]} ●, b2" in page.text
    assert "Classes that span machines" in page.text and f"{ZEN}, {ICE}" in page.text
    assert "A machine never trained on" in page.text and "said to be unknown, without them" in page.text
    assert [attrs for tag, attrs in page.tags if tag == "details"], "every value stands in a table that folds away"


def test_pairs_that_nobody_compared_are_said_to_be_so(made_up: Path, tmp_path: Path) -> None:
    made_up_tables(tmp_path / "tables", IDS, HARD, nearest=2)
    evaluation = read(tmp_path / "tables", made_up / "metrics.json", made_up / "features")
    pairs = pair_matrix(evaluation)
    i, j = (pairs.platforms.index(p) for p in (IDS[0], IDS[7]))
    assert pairs.skipped()[i, j] and not pairs.skipped().diagonal().any()
    *_, path = report.build(tmp_path / "tables", made_up / "metrics.json", None, tmp_path / "out")
    skipped = int(np.triu(pairs.skipped()).sum())
    assert f"{skipped} pairs were not compared" in Page(path.read_text("utf-8")).text


def test_a_hundred_platforms_have_pictures_that_fit_a_page(made_up: Path, tmp_path: Path) -> None:
    made_up_tables(tmp_path / "tables", many(), (many()[0], many()[3], 0.93), nearest=8)
    *_, path = report.build(tmp_path / "tables", made_up / "metrics.json", None, tmp_path / "out")
    for name in ("pair_accuracy", "accuracy_by_platform"):
        with (tmp_path / "out/figures" / f"{name}.png").open("rb") as file:
            width, height = struct.unpack(">II", file.read(24)[16:])  # of a PNG
        assert 900 < width < 2200 and 900 < height < 2200, name
    assert path.stat().st_size < 3_000_000


def many() -> list[str]:
    """About a hundred platforms, on two CPUs and on virtual GPUs."""
    known = catalogue.CATALOGUE.values()
    cpu = [p.id for p in known if p.device == "cpu"][:50]
    virtual = [(f"virtual-{p.device.split()[1].lower()}", p.id) for p in known if p.device.startswith("virtual")]
    gpus = [f"{h}/{id}" for h, id in virtual if h in ("virtual-a100", "virtual-h100", "virtual-mi300x")][::7]
    return [*(f"{h}/{id}" for h in (ZEN, ICE) for id in cpu), *gpus]


def test_virtual_gpus_are_emulated_and_silicon_is_unverified(made_up: Path, tmp_path: Path) -> None:
    inputs = made_up / "tables", made_up / "metrics.json", None
    *_, path = report.build(*inputs, tmp_path, ROOT / "docs" / "virtual-gpus.json")
    page = Page(path.read_text("utf-8"))
    found = json.loads((ROOT / "docs" / "virtual-gpus.json").read_text("utf-8"))
    for words in ("Virtual GPUs, emulated", "Silicon: unverified", "Never claimed apart", "T4, A100, A40"):
        assert words in page.text, words
    for where in found["plan_search"]:
        assert f"{where}: another plan for each product" in page.text


def test_figures_of_virtual_gpus_must_be_whole(made_up: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"silicon": "unverified", "accuracy": []}')
    with pytest.raises(DataError, match=r"bad\.json must hold figures of virtual GPUs, but: KeyError"):
        report.build(made_up / "tables", made_up / "metrics.json", None, tmp_path / "out", tmp_path / "bad.json")
    assert not (tmp_path / "out").exists()


def test_targets_are_judged(page: Page) -> None:
    missed = [h for h in HEADLINES if h.met(made_up_metrics()) is False]
    met = [h for h in HEADLINES if h.met(made_up_metrics())]
    assert missed and met
    assert page.text.count("✗ missed") == len(missed) and page.text.count("✓") == len(met)


def test_the_matrix_shows_the_hardest_model_and_the_worst_pair(made_up: Path) -> None:
    evaluation = read(made_up / "tables", made_up / "metrics.json", made_up / "features")
    pairs = pair_matrix(evaluation)
    a, b, value = pairs.worst() or ("", "", 0)
    assert {a, b} == set(HARD[:2]) and value == 0.91
    assert np.array_equal(pairs.accuracy, pairs.accuracy.T, equal_nan=True)
    i, j = (pairs.platforms.index(p) for p in IDS[:2])
    assert pairs.same[i, j] == 1, "one class on one model of two"
    k = pairs.platforms.index(f"{ZEN}/ort-fp32")
    assert np.isfinite(pairs.accuracy[j, k]), "a member stands where its class does"


def test_platforms_stand_by_hardware_and_then_by_engine(made_up: Path) -> None:
    evaluation = read(made_up / "tables", made_up / "metrics.json", made_up / "features")
    places = [(p.rpartition("/")[0], evaluation.engine(p)) for p in evaluation.ids()]
    assert len(places) == len(IDS) and places == sorted(places) and places[0][0] == ZEN


def test_the_same_tables_give_the_same_bytes(made_up: Path, built: list[Path], tmp_path: Path) -> None:
    again = report.build(made_up / "tables", made_up / "metrics.json", made_up / "features", tmp_path)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in built]


def test_without_features_and_optional_tables(made_up: Path, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    (tables / "pair_accuracy.csv").write_bytes((made_up / "tables" / "pair_accuracy.csv").read_bytes())
    built = report.build(tables, made_up / "metrics.json", None, tmp_path / "out")
    assert [p.name for p in built] == ["pair_accuracy.png", "report.html"]
    page = Page(built[-1].read_text("utf-8"))
    assert "1 unknown ?" in page.text, "without its record, nobody knows what it is"


def test_one_class_alone_has_no_matrix(tmp_path: Path, made_up: Path) -> None:
    write_csv(tmp_path / "tables" / "classes.csv", [{"model": "m", "class": TORCH[0], "platforms": TORCH[0]}])
    built = report.build(tmp_path / "tables", made_up / "metrics.json", None, tmp_path / "out")
    assert [p.name for p in built] == ["report.html"]


@pytest.mark.parametrize("damage", ["no tables", "not json", "nested", "column", "figure"])
def test_bad_input_is_one_line_and_leaves_nothing(made_up: Path, tmp_path: Path, damage: str) -> None:
    tables, metrics = tmp_path / "tables", tmp_path / "metrics.json"
    metrics.write_text({"not json": "{", "nested": '{"a": {"b": 1}}'}.get(damage, "{}"))
    if damage != "no tables":
        made_up_tables(tables, IDS[:5], (IDS[0], IDS[1], 0.9))
    if damage == "column":
        (tables / "pair_accuracy.csv").write_text("level,split\nreplay,probes\n")
    if damage == "figure":
        write_csv(tables / "reliability.csv", [{"confidence": "high", "accuracy": 1, "count": 1}])
    with pytest.raises(DataError) as error:
        report.build(tables, metrics, None, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_readme_block_holds_figures_and_renews_in_place(tmp_path: Path) -> None:
    metrics = made_up_metrics()
    host = "amd-zen3: AMD EPYC (family 25, model 1; AVX2), 2026-11-24"
    block = report.readme_block(metrics, [host])
    assert block.startswith(report.BEGIN) and block.endswith(report.END)
    rows = [line for line in block.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + sum(h.brief for h in HEADLINES)
    assert len({line.count("|") for line in rows}) == 1
    assert "llama: 8" in block and block.endswith(f"\nHost: {host}.\n{report.END}")

    readme, path = tmp_path / "README.md", tmp_path / "metrics.json"
    readme.write_text(f"# a\n\n{report.BEGIN}\nold\n{report.END}\n\nthe rest\n")
    path.write_text(json.dumps(metrics))
    with pytest.raises(DataError):
        report.update_readme(readme, path, tmp_path / "none")
    made_on(tmp_path / "store", "b1", MILAN)
    for _ in range(2):
        report.update_readme(readme, path, tmp_path / "store")
        assert readme.read_text() == f"# a\n\n{block}\n\nthe rest\n"
    (tmp_path / "bare.md").write_text("# a\n")
    with pytest.raises(DataError):
        report.update_readme(tmp_path / "bare.md", path, tmp_path / "store")


MILAN = {
    "cpu_vendor": "AuthenticAMD",
    "cpu_model": "AMD EPYC",
    "cpu_family_model_stepping": "25/1/1",
    "cpu_flags": "sse4_2 avx fma avx2 f16c",
}


def made_on(
    store: Path, nuisance: str, facts: dict[str, str], day: str = "2026-11-24", software: str = "torch-fp32"
) -> None:
    """A signature without rows: where it came from is all that is asked."""
    header = Header(
        *(catalogue.get(software), "llama", "w", "text", "p", Nuisance(nuisance), 1, 20),
        facts=facts,
        created=f"{day}T12:00:00+00:00",
    )
    path = signature_path(store, header.hardware.id, software, "llama", "text", nuisance)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(arrow_schema(header).empty_table(), path)


def test_results_name_every_machine_of_the_signatures(tmp_path: Path) -> None:
    made_on(tmp_path, "b1", {"gpu": "NVIDIA H100 PCIe", "gpu_compute_capability": "9.0", **MILAN})
    made_on(tmp_path, "b2", MILAN)
    made_on(tmp_path, "b3", MILAN, "2026-11-26")
    made_on(tmp_path, "b4", {})
    for gpu in ("h100", "a100"):
        made_on(tmp_path, "b1", MILAN, software=f"vgpu-{gpu}-bf16-k1")
    names = hosts(tmp_path)
    assert names == [
        "amd-zen3: AMD EPYC (family 25, model 1; AVX2), 2026-11-24 – 2026-11-26",
        "cpu: a machine that gave no name (family ?, model ?), 2026-11-24",
        "nvidia-h100-pcie: NVIDIA H100 PCIe (compute capability 9.0), 2026-11-24",
        "emulated on CPUs: virtual-a100, virtual-h100, 2026-11-24",
    ]
    assert f"\nHosts: {'; '.join(names)}.\n" in report.readme_block({"platforms": 3.0}, names)


def test_figures_that_were_not_measured_are_left_out() -> None:
    block = report.readme_block({"platforms": 3.0, "replay.probes.macro_accuracy": 0.99995})
    assert len(re.findall(r"^\| Which", block, re.M)) == 1
    assert "0.9999" in block and "**1**" not in block


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1"), (0.99999, "0.9999"), (0.5, "0.5"), (0.0, "0"), (None, "–"), (0.12345, "0.1235")]
)
def test_rates_never_round_up_to_certainty(value: float | None, text: str) -> None:
    assert rate(value) == text

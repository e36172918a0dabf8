"""The scalar reference, the general kernel and the fast kernels are one arithmetic, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from format_values import every_value
from hspi.errors import ConfigError, DataError, UnknownName
from hspi.numerics import reference
from hspi.numerics.architectures import UNITS, Unit, unit
from hspi.numerics.formats import format_of, round_to
from hspi.numerics.matmul import _pack, guarded, matmul, multiply, pack_b
from hspi.numerics.plans import KernelPlan

pytest.importorskip("numba")

ALL = [pytest.param(u, id=f"{u.architecture}-{u.input_type}") for u in UNITS.values()]
PLANS = [
    KernelPlan(split_k=2),
    KernelPlan(split_k=4, combine="tree", workspace="bf16"),
    KernelPlan(split_k=8, split="interleaved", k_tile=64, workspace="fp16"),
    KernelPlan(k_tile=64, order="reverse", chunk=2),
    KernelPlan(k_tile=128, order="rotated", instruction_k=64),
    KernelPlan(instruction_k=4),
    KernelPlan(promote=64, split_k=2, k_tile=64),
]


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint32)


def assert_same_bits(x: np.ndarray, y: np.ndarray) -> None:
    wrong = np.argwhere(bits(x) != bits(y))
    assert not len(wrong), (
        f"{len(wrong)} of {x.size} differ, first at {wrong[0]}: {x[tuple(wrong[0])]} {y[tuple(wrong[0])]}"
    )


# ---- inputs: each family returns a (M, K), b (K, N), c (M, N) or None ----


def normal(rng, fmt, m, k, n):
    return round_to(rng.normal(size=(m, k)), fmt), round_to(rng.normal(size=(k, n)), fmt), None


def spread(rng, fmt, shape, low, high):
    """Random signs and mantissas, exponents uniform in [low, high] clipped to the format."""
    low = max(low, fmt.min_exponent)
    high = max(low, min(high, int(np.log2(fmt.max_value))))
    x = (1 + rng.random(shape)) * np.exp2(rng.integers(low, high + 1, shape).astype(float)) * rng.choice([-1, 1], shape)
    return round_to(x, fmt, "zero")


def wide(rng, fmt, m, k, n):
    """As wide as the guard lets through: products from 2^-40 to 2^40."""
    c = spread(rng, format_of("fp32"), (m, n), -30, 30)
    return spread(rng, fmt, (m, k), -20, 19), spread(rng, fmt, (k, n), -20, 19), c


def widest(rng, fmt, m, k, n):
    """From one bound of the guard as far as the others allow, at the low end or at the high end."""
    low, high = (-45, 4) if rng.random() < 0.5 else (22, 54)
    a = np.where(rng.random((m, k)) < 0.1, np.float32(0), spread(rng, fmt, (m, k), low, high))
    return a, spread(rng, fmt, (k, n), low, high), None


def cancelling(rng, fmt, m, k, n):
    """Pairs that cancel exactly, or all but in the last places, within a step and against c."""
    a, b = spread(rng, fmt, (m, k), -8, 8), spread(rng, fmt, (k, n), -8, 8)
    a[:, 1::2], b[1::2] = a[:, : k - 1 : 2] if k % 2 else a[:, ::2], -(b[: k - 1 : 2] if k % 2 else b[::2])
    nudged = rng.random(a.shape) < 0.15
    a = np.where(nudged, round_to(a * (1 + 2.0**-fmt.mantissa_bits), fmt, "zero"), a)
    c = -(a[:, :1].astype(np.float64) * b[:1]).astype(np.float32)
    return a, b, c


def sparse(rng, fmt, m, k, n):
    """Mostly zeros of either sign, some rows all zero; c sometimes −0."""
    a, b, c = wide(rng, fmt, m, k, n)
    a = np.where(rng.random(a.shape) < 0.8, a * np.float32(0), a)
    a[0] = 0
    return a, np.where(rng.random(b.shape) < 0.3, b * np.float32(0), b), np.where(rng.random(c.shape) < 0.5, -0.0, c)


def any_code(rng, fmt, m, k, n):
    """Every bit pattern: subnormals, ∞ and NaN, overflow and underflow."""
    values = every_value(fmt)
    c = rng.integers(0, 1 << 32, (m, n), dtype=np.uint32).view(np.float32)
    return rng.choice(values, (m, k)), rng.choice(values, (k, n)), c


def finite_codes(rng, fmt, m, k, n):
    values = every_value(fmt)
    values = values[np.isfinite(values)]
    c = rng.integers(0, 1 << 32, (m, n), dtype=np.uint32).view(np.float32)
    return rng.choice(values, (m, k)), rng.choice(values, (k, n)), np.where(np.isfinite(c), c, 1)


def subnormal(rng, fmt, m, k, n):
    """Operands around the smallest normal number; results and c around fp32's."""
    low = fmt.min_exponent
    tiny = 2.0 ** (low - fmt.mantissa_bits)
    a = round_to(rng.integers(-40, 41, (m, k)) * tiny, fmt)
    b = spread(rng, fmt, (k, n), -3, 6) if low < -100 else round_to(rng.integers(-40, 41, (k, n)) * tiny, fmt)
    c = rng.integers(0, 1 << 25, (m, n), dtype=np.uint32) | (rng.integers(0, 2, (m, n), dtype=np.uint32) << 31)
    return a, b, c.view(np.float32)


def zero_beside_tiny(rng, fmt, m, k, n):
    """Zeros against large partners, beside terms that their exponent of −126 reaches."""
    top = int(np.log2(fmt.max_value))
    a = np.where(rng.random((m, k)) < 0.9, np.float32(0), spread(rng, fmt, (m, k), -60, -50))
    a[: m // 2] = 0
    b = spread(rng, fmt, (k, n), top - 40, top)
    return a, b, spread(rng, format_of("fp32"), (m, n), -126, top - 126 - 10)


def overflowing(rng, fmt, m, k, n):
    """The largest values, ±∞ and NaN sprinkled where the format has them, c near the end of fp32."""
    a, b, _ = normal(rng, fmt, m, k, n)
    a = np.where(rng.random(a.shape) < 0.05, np.float32(fmt.max_value), a)
    b = np.where(rng.random(b.shape) < 0.05, np.float32(-fmt.max_value), b)
    special = [np.inf, -np.inf, np.nan] if fmt.specials == "ieee" else [np.nan]
    a = np.where(rng.random(a.shape) < 0.2 / a.shape[1], rng.choice(special, a.shape), a)
    c = np.where(
        rng.random((m, n)) < 0.3, rng.choice([np.inf, -np.inf, np.nan, -0.0], (m, n)), 3.4e38 * rng.uniform(-1, 1)
    )
    return a.astype(np.float32), b, c.astype(np.float32)


def guard_edge(rng, fmt, m, k, n):
    """Exponents on either side of each bound of the guard, where the format reaches that far."""
    at, beside = [(-46, -44), (-45, -45), (53, 54), (56, 56), (57, 56), (-95, 10), (-94, 10)][rng.integers(7)]
    a, b = spread(rng, fmt, (m, k), at, at + 2), spread(rng, fmt, (k, n), beside, beside)
    if rng.random() < 0.5:
        a = np.where(rng.random(a.shape) < 0.5, a, np.float32(0))
    return a, b, spread(rng, format_of("fp32"), (m, n), -91, -88) if rng.random() < 0.5 else None


FAMILIES = (
    normal,
    wide,
    widest,
    cancelling,
    sparse,
    any_code,
    finite_codes,
    subnormal,
    zero_beside_tiny,
    overflowing,
    guard_edge,
)
INSIDE_THE_GUARD = (normal, wide, widest, cancelling, sparse)


@pytest.mark.parametrize("record", ALL)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_the_twins_agree_with_the_reference(record: Unit, family):
    rng = np.random.default_rng(len(record.architecture) * 100 + len(family.__name__))
    for k in (record.instruction_k, 3 * record.instruction_k + 5):
        a, b, c = family(rng, record.format, 3, k, 4)
        expected = reference.matmul(a, b, record, c)
        assert_same_bits(multiply(a, b, record, c, path="general"), expected)
        assert_same_bits(multiply(a, b, record, c), expected)


@pytest.mark.parametrize("record", ALL)
def test_long_chains_agree_with_the_reference(record: Unit):
    a, b, _ = normal(np.random.default_rng(7), record.format, 1, 4096, 2)
    expected = reference.matmul(a, b, record)
    assert_same_bits(multiply(a, b, record, path="fast"), expected)
    assert_same_bits(multiply(a, b, record, path="general"), expected)


def compare_paths(record: Unit, rng, m: int, n: int, steps: int) -> int:
    """Dot products compared between the fast and the general kernel, each a chain of `steps` instructions."""
    compared = 0
    for family in INSIDE_THE_GUARD:
        a, b, c = family(rng, record.format, m, steps * record.instruction_k, n)
        assert_same_bits(multiply(a, b, record, c, path="fast"), multiply(a, b, record, c, path="general"))
        compared += m * n
    return compared


def test_a_million_dot_products_agree():
    rng = np.random.default_rng(8)
    assert sum(compare_paths(record, rng, 32, 256, 2) for record in UNITS.values()) >= 1_000_000


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("record", ALL)
def test_a_hundred_million_dot_products_agree(record: Unit):
    rng, compared = np.random.default_rng(9), 0
    while compared < 100_000_000 // len(UNITS):
        compared += compare_paths(record, rng, 256, 1024, 1 + compared % 3)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("record", ALL)
def test_many_more_agree_with_the_reference(record: Unit):
    rng = np.random.default_rng(10)
    for family in FAMILIES * 4:
        a, b, c = family(rng, record.format, 8, 2 * record.instruction_k, 16)
        assert_same_bits(multiply(a, b, record, c), reference.matmul(a, b, record, c))


# ---- wrong constants must show ----


def differs(record: Unit, wrong: Unit, families=FAMILIES, path="general") -> bool:
    """Whether the kernels with a wrong record miss the bits of the right one, which the reference confirmed above."""
    rng = np.random.default_rng(11)
    for family in families:
        a, b, c = family(rng, record.format, 24, 2 * record.instruction_k, 64)
        if (bits(multiply(a, b, wrong, c, path=path)) != bits(multiply(a, b, record, c))).any():
            return True
    return False


WRONG = {
    "fraction+1": lambda u: replace(u, fraction=u.fraction + 1, sum_fraction=u.sum_fraction and u.sum_fraction + 1),
    "fraction-1": lambda u: replace(u, fraction=u.fraction - 1),
    "half step": lambda u: replace(u, step=u.step // 2, steps=u.steps * 2),
    "double step": lambda u: replace(u, step=u.step * 2, steps=1) if u.steps > 1 else None,
    "sum_fraction-1": lambda u: replace(u, sum_fraction=u.sum_fraction - 1) if u.kind == "two_stage" else None,
    "result_bits": lambda u: replace(u, result_bits=36 - u.result_bits) if u.kind == "truncating" else None,
    "zero_exponent+1": lambda u: replace(u, zero_exponent=u.zero_exponent + 1),
    "flush": lambda u: replace(u, flush=not u.flush) if u.kind == "tree" else None,
    "parity": lambda u: replace(u, parity=not u.parity) if u.kind == "two_stage" else None,
}
TREE_HAS_NO = ("fraction+1", "fraction-1", "zero_exponent+1")


def wrong_records() -> list:
    """Every constant that a unit has, wrong; a tree has no alignment, and a tree of two has no half."""
    cases = []
    for record in UNITS.values():
        for name, change in WRONG.items():
            absent = record.kind == "tree" and (name in TREE_HAS_NO or (name == "half step" and record.step == 2))
            wrong = None if absent else change(record)
            if wrong is not None:
                cases.append(pytest.param(record, wrong, id=f"{record.architecture}-{record.input_type}-{name}"))
    return cases


@pytest.mark.parametrize(("record", "wrong"), wrong_records())
def test_a_wrong_constant_is_caught(record: Unit, wrong: Unit):
    assert differs(record, wrong)


@pytest.mark.parametrize("name", ["fraction+1", "half step"])
def test_a_wrong_constant_is_caught_in_generated_code(name: str):
    record = unit("ampere", "bf16")
    assert differs(record, WRONG[name](record), families=(normal,), path="fast")


@pytest.mark.parametrize("record", [p for p in ALL if p.values[0].kind != "tree"])
def test_a_wrong_rounding_is_caught(record: Unit, monkeypatch):
    honest = reference._round_fp32
    swap = {"zero": "nearest", "nearest": "zero"}
    a, b, c = wide(np.random.default_rng(12), record.format, 4, 2 * record.instruction_k, 8)
    result = multiply(a, b, record, c)
    assert_same_bits(result, reference.matmul(a, b, record, c))
    monkeypatch.setattr(reference, "_round_fp32", lambda x, rounding, m: honest(x, swap[rounding], m))
    assert (bits(result) != bits(reference.matmul(a, b, record, c))).any()


# ---- the specification's own sentences ----


def test_the_exponent_is_the_sum_of_operand_exponents():
    """1.75·1.75 = 3.0625 has exponent 1, but e is 0: with F = 24 a term of 2^-24 survives where 2^-23 was the unit."""
    record = unit("ampere", "bf16")
    a, b = np.zeros((1, 16), np.float32), np.zeros((16, 1), np.float32)
    a[0, :3], b[:3, 0] = (1.75, 1.75, 2.0**-24), (1.75, -1.75, 1)
    assert multiply(a, b, record)[0, 0] == 2.0**-24
    a[0, 2] = 2.0**-25
    assert multiply(a, b, record)[0, 0] == 0


def test_a_zero_operand_counts_as_minus_126():
    a, b = np.zeros((1, 16), np.float32), np.ones((16, 1), np.float32)
    a[0, 0] = 2.0**-60
    assert matmul(a, b, "ampere", "bf16")[0, 0] == 2.0**-60
    b[1, 0] = 2.0**100
    assert matmul(a, b, "ampere", "bf16")[0, 0] == 0


def test_fp8_results_keep_13_bits_on_ada_and_hopper_only():
    a, b, _ = normal(np.random.default_rng(13), format_of("e4m3"), 16, 96, 16)
    low = {name: (bits(matmul(a, b, name, "e4m3")) & 0x3FF).any() for name in ("ada", "hopper", "blackwell")}
    assert low == {"ada": False, "hopper": False, "blackwell": True}


@pytest.mark.parametrize("architecture", ["ampere", "hopper"])
def test_truncation_pulls_toward_zero_on_nvidia_and_not_on_amd(architecture):
    a, b, _ = normal(np.random.default_rng(14), format_of("bf16"), 32, 2048, 64)
    exact = a.astype(np.float64) @ b
    for name, biased in ((architecture, True), ("cdna1", False), ("cdna3", False)):
        error = (matmul(a, b, name, "bf16") - exact) * np.sign(exact)
        pull = error.mean() / np.sqrt((error**2).mean())
        assert (pull < -0.3) if biased else (abs(pull) < 0.1)


def test_nothing_is_minus_zero_and_nan_has_one_pattern():
    for architecture, nan in (("hopper", 0x7FFFFFFF), ("volta", 0x7FFFFFFF), ("cdna3", 0x7FC00000)):
        a = np.float32([[-0.0] * 16, [np.nan] * 16, [np.inf] * 16])
        b = np.float32([[0.0]] * 16)
        result = bits(matmul(a, b, architecture, "fp16", c=np.full((3, 1), -0.0)))[:, 0]
        assert result.tolist() == [0, nan, nan]


def test_every_result_is_near_the_exact_product():
    """A loose bound that no wiring mistake survives: K terms, each off by at most one unit of the largest."""
    rng = np.random.default_rng(15)
    for record in UNITS.values():
        a, b, c = wide(rng, record.format, 4, 100, 5)
        exact = a.astype(np.float64) @ b + c
        largest = (np.abs(a).astype(np.float64) @ np.abs(b)) + np.abs(c)
        unit_of_last_place = 2.0 ** -(min(record.fraction or 23, record.result_bits) - 1)
        assert (np.abs(multiply(a, b, record, c) - exact) <= largest * unit_of_last_place * 100).all()


# ---- plans, threads, packing, inputs ----


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: p.name)
@pytest.mark.parametrize("key", [("ampere", "bf16"), ("hopper", "fp16"), ("cdna2", "fp16"), ("cdna3", "bf16")])
def test_plans_agree_with_the_reference(plan: KernelPlan, key):
    record = unit(*key)
    for family in (normal, any_code):
        a, b, c = family(np.random.default_rng(16), record.format, 2, 300, 3)
        assert_same_bits(multiply(a, b, record, c, plan), reference.matmul(a, b, record, c, plan))


def test_plans_move_the_bits():
    a, b, _ = normal(np.random.default_rng(17), format_of("bf16"), 16, 512, 64)
    results = {plan.name: bits(matmul(a, b, "ampere", "bf16", plan=plan)).tobytes() for plan in [KernelPlan(), *PLANS]}
    # Ampere's step is 8 whatever a longer instruction's length, but a half-length step and each other plan is its own
    assert len(set(results.values())) == len(results)


def test_threads_and_packed_weights_do_not_move_the_bits():
    rng = np.random.default_rng(18)
    for n in (40, 300):
        a, b, c = wide(rng, format_of("fp16"), 33, 200, n)
        expected = matmul(a, b, "hopper", "fp16", c)
        assert_same_bits(matmul(a, b, "hopper", "fp16", c, threads=2), expected)
        assert_same_bits(matmul(a, pack_b(b, "hopper", "fp16"), "hopper", "fp16", c), expected)
    with pytest.raises(ConfigError, match="packed"):
        matmul(a, pack_b(b, "hopper", "fp16"), "ampere", "fp16")


def test_tensors_and_small_dtypes_are_taken_as_they_are():
    torch = pytest.importorskip("torch")
    a, b, _ = normal(np.random.default_rng(19), format_of("bf16"), 3, 40, 5)
    expected = matmul(a, b, "ampere", "bf16")
    tensors = [torch.from_numpy(x).to(torch.bfloat16) for x in (a, b)]
    assert_same_bits(matmul(*tensors, "ampere", "bf16"), expected)
    assert_same_bits(matmul(a.astype(ml_dtypes.bfloat16), b.astype(np.float64), "ampere", "bf16"), expected)
    assert_same_bits(matmul(np.asfortranarray(a), b[:, ::-1][:, ::-1], "ampere", "bf16"), expected)


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 3), (2, 5, 0), (1, 1, 1)])
def test_any_size(shape):
    m, k, n = shape
    c = np.full((m, n), 0.5, np.float32)
    result = matmul(np.ones((m, k)), np.ones((k, n)), "hopper", "fp16", c)
    assert result.shape == (m, n) and (result == k + 0.5).all()


def test_values_that_are_not_exact_are_refused():
    good, bad = np.ones((2, 4)), np.full((2, 4), 1 + 2.0**-8)
    for left, right in ((bad, good.T), (good, bad.T)):
        with pytest.raises(DataError, match="exact in bf16"):
            matmul(left, right, "ampere", "bf16")
    for kind, architecture, value in (("e4m3", "ada", 449.0), ("e4m3", "ada", np.inf), ("fp16", "volta", 65536.0)):
        with pytest.raises(DataError, match="exact"):
            matmul(good * value, good.T, architecture, kind)
    with pytest.raises(DataError, match="float32"):
        matmul(good * (1 + 2.0**-40), good.T, "ampere", "tf32")
    with pytest.raises(DataError, match="real numbers"):
        matmul([["x"]], good.T, "ampere", "tf32")


@pytest.mark.parametrize("name", ["fp16", "bf16", "tf32", "e4m3", "e4m3fnuz"])
def test_exactness_is_the_formats_own(name):
    """Packing accepts exactly the values of the format: all its codes, and none of the fp32 numbers beside them."""
    architecture = {"e4m3": "ada", "e4m3fnuz": "cdna3"}.get(name, "ampere")
    values = every_value(format_of(name))[:: 1 if name.startswith("e") else 37]
    pack_b(values[None], architecture, name)
    plain = values[np.isfinite(values) & (np.abs(values) > 2.0**-140)]
    for x in rng_sample(np.nextafter(plain, np.float32(np.inf))):
        with pytest.raises(DataError):
            pack_b([[x]], architecture, name)


def rng_sample(x: np.ndarray) -> np.ndarray:
    return np.random.default_rng(20).choice(x, 50)


def test_bad_requests_are_named():
    x = np.ones((4, 4))
    with pytest.raises(UnknownName, match="pascal"):
        matmul(x, x, "pascal", "fp16")
    with pytest.raises(ConfigError, match="bf16"):
        matmul(x, x, "volta", "bf16")
    with pytest.raises(DataError, match="share K"):
        matmul(x, np.ones((3, 4)), "volta", "fp16")
    with pytest.raises(DataError, match="two axes"):
        matmul(np.ones(4), x, "volta", "fp16")
    with pytest.raises(DataError, match="shape"):
        matmul(x, x, "volta", "fp16", c=np.ones((2, 2)))
    with pytest.raises(ConfigError, match="guard"):
        matmul(x * np.inf, x, "volta", "fp16", path="fast")
    with pytest.raises(ConfigError, match="instruction_k"):
        matmul(x, x, "ampere", "fp16", plan=KernelPlan(instruction_k=12))


def test_the_guard_holds_its_bounds():
    record, plan = unit("ampere", "bf16"), KernelPlan()

    def allowed(a, b, c=None) -> bool:
        left, right = np.full((1, 16), a, np.float32), np.full((16, 1), b, np.float32)
        start = np.full((1, 64), c, np.float32) if isinstance(c, float) else None
        return guarded(_pack(left, record, plan, rows=True), _pack(right, record, plan, rows=False), start)

    assert allowed(1, 1) and not allowed(np.inf, 1) and not allowed(0, 1)
    assert allowed(2.0**-45, 2.0**-45) and not allowed(2.0**-45, 2.0**-46)
    assert allowed(1, 1, 2.0**-90) and not allowed(1, 1, 2.0**-91)
    assert allowed(2.0**56, 2.0**57) and not allowed(2.0**57, 2.0**57)
    assert allowed(2.0**-94, 2.0**10) and not allowed(2.0**-95, 2.0**10)


def test_a_missing_numba_names_the_extra():
    code = """
import sys
sys.modules["numba"] = None
from hspi.errors import MissingExtra
from hspi.numerics.matmul import matmul
try:
    matmul([[1.0]], [[1.0]], "volta", "fp16")
except MissingExtra as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "hspi[numerics]" in done.stdout


def test_rationals_agree_with_float64_where_it_is_exact():
    assert reference._round_fp32(Fraction(1) + Fraction(1, 1 << 24), "nearest", 23) == 1.0
    assert reference._round_fp32(-Fraction(3, 1 << 151), "zero", 23) == 0.0
    assert reference._round_fp32(Fraction(1 << 128) - Fraction(1), "zero", 23) == np.finfo(np.float32).max
    for x in np.random.default_rng(21).normal(size=200) * 2.0**-130:
        assert reference._round_fp32(Fraction(x), "nearest", 23) == np.float32(x)

"""What makes an audit an alert: the rule alone, on histories made by hand and at random."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hspi.errors import ConfigError, DataError
from hspi.history import Entry, established, judged, key_of
from hspi.monitor import picture as drawing

LIBRARY = ("a", "a2", "b", "c")


def entry(hour: int, outcome: str, answer: str = "", *fits: str, **more: object) -> Entry:
    fits = fits or ((answer,) if answer and outcome != "inconclusive" else ())
    return Entry(f"2026-01-02T{hour:02d}:00:00+00:00", f"f{hour}", outcome, answer, fits, "why", **more)  # type: ignore[arg-type]


def told(*entries: Entry, candidates: tuple[str, ...] = LIBRARY) -> list[Entry]:
    """The entries, each held against those before it."""
    out: list[Entry] = []
    for e in entries:
        out.append(judged(e, established(out), candidates))
    return out


def alerts(*entries: Entry, candidates: tuple[str, ...] = LIBRARY) -> list[bool]:
    return [e.alert for e in told(*entries, candidates=candidates)]


def test_the_first_class_is_no_change_and_another_one_is() -> None:
    assert alerts(entry(0, "identified", "a"), entry(1, "consistent", "a"), entry(2, "contradicted", "b")) == [0, 0, 1]
    assert alerts(entry(0, "contradicted", "a"), entry(1, "contradicted", "a")) == [0, 0]


def test_what_is_inconclusive_or_failed_neither_changes_nor_resets() -> None:
    quiet = (entry(1, "inconclusive", "b"), entry(2, "failed"))
    found = told(
        entry(0, "identified", "a"), *quiet, entry(3, "consistent", "a"), *quiet, entry(4, "contradicted", "b")
    )
    assert [e.alert for e in found] == [0, 0, 0, 0, 0, 0, 1]
    assert {e.before for e in found[1:]} == {"a"}


def test_unknown_after_a_class_is_a_change_and_says_that_nothing_is_known() -> None:
    _, gone, back = told(entry(0, "identified", "a"), entry(1, "unknown", "unknown"), entry(2, "identified", "a"))
    assert gone.alert and "not known" in gone.news and "a answered" in gone.news
    assert back.alert and "no candidate fitted" in back.news
    assert alerts(entry(0, "unknown", "unknown"), entry(1, "contradicted", "unknown")) == [0, 0]


def test_an_audit_that_only_does_not_exclude_the_class_is_no_change_and_loses_nothing() -> None:
    """A contradicted claim may leave several classes; those that fitted before stay the state."""
    several = entry(1, "contradicted", "unknown", "a", "b")
    assert alerts(entry(0, "identified", "a"), several, entry(2, "identified", "a")) == [0, 0, 0]
    assert alerts(entry(0, "identified", "a"), several, entry(2, "identified", "b")) == [0, 0, 1]
    (_, news) = told(entry(0, "identified", "c"), several)
    assert news.alert and "a, b not excluded" in news.news


def test_a_contradicted_number_format_is_a_change_only_of_the_class_that_answered() -> None:
    """Such an audit names no platform: of another claim it says nothing about the class of before."""
    of_before, of_another = (
        entry(1, "contradicted", "unknown", claim="a"),
        entry(1, "contradicted", "unknown", claim="b"),
    )
    of_before, of_another = (Entry.from_dict({**e.to_dict(), "fits": []}) for e in (of_before, of_another))
    _, changed, back = told(entry(0, "identified", "a"), of_before, entry(2, "identified", "a"))
    assert changed.alert and "by its number format" in changed.news and back.alert
    assert alerts(entry(0, "identified", "a"), of_another, entry(2, "identified", "a")) == [0, 0, 0]


def test_a_contradicted_format_of_the_software_that_answered_is_a_change_whatever_its_hardware() -> None:
    before = entry(0, "identified", "amd-zen3/a")
    for claim, changed in (("a", True), ("amd-zen3/a", True), ("amd-zen4/a", False), ("b", False), ("zen3/a", False)):
        now = Entry.from_dict({**entry(1, "contradicted", "unknown", claim=claim).to_dict(), "fits": []})
        assert alerts(before, now, candidates=("amd-zen3/a",)) == [False, changed], claim


def test_a_state_without_a_name_says_what_is_left() -> None:
    several = entry(0, "contradicted", "unknown", "a", "b")
    (_, then) = told(several, entry(1, "identified", "c"))
    assert then.before == "unknown (left: a, b)" and then.alert


def test_another_library_starts_anew_without_an_alert() -> None:
    found = told(entry(0, "identified", "gone"), entry(1, "identified", "a"), entry(2, "consistent", "a"))
    assert [e.alert for e in found] == [0, 0, 0] and "starts anew" in found[1].news and not found[2].news
    renamed = told(entry(0, "identified", "a2", "a", "a2"), entry(1, "identified", "a", "a"))
    assert not renamed[1].alert, "a class that the library names otherwise is no change"


def test_alerts_of_an_endpoint_that_never_changed_are_at_most_two_for_each_wrong_audit() -> None:
    rng, wrong, raised = np.random.default_rng(0), 0, 0
    for _ in range(300):
        entries = []
        for hour in range(20):
            miss = rng.random() < 0.02
            others = [c for c in "abc" if rng.random() < 0.3 and c != "a"]
            fits = ([] if miss else ["a"]) + others
            wrong += miss
            answer = fits[0] if len(fits) == 1 else "unknown"
            outcome = "inconclusive" if len(fits) > 1 and rng.random() < 0.5 else "contradicted"
            entries.append(entry(hour, outcome, answer, *(fits or ["unknown"])))
        raised += sum(alerts(*entries))
    assert 0 < raised <= 2 * wrong


def test_exit_codes_are_those_of_every_verb() -> None:
    codes = [entry(0, o, "a").exit_code for o in ("consistent", "identified", "contradicted", "inconclusive", "failed")]
    assert codes == [0, 0, 1, 3, 4]
    assert entry(0, "unknown", "unknown").exit_code == 3
    assert entry(0, "identified", "a", alert=True).exit_code == 1


def test_an_entry_survives_its_file_and_a_broken_one_is_one_clear_line() -> None:
    one = entry(3, "contradicted", "b", alert=True, news="x", cost=0.5)
    data = json.loads(json.dumps(one.to_dict()))
    assert Entry.from_dict({**data, "of a later version": 1}) == one
    with pytest.raises(DataError, match="must hold time"):
        Entry.from_dict({"fits": []})
    assert len({key_of("u", "m", "w"), key_of("um", "", "w"), key_of("u", "m", "x")}) == 3


def test_a_history_is_drawn_and_its_page_stands_alone_and_escapes(tmp_path: Path) -> None:
    entries = told(
        entry(0, "identified", "a"), entry(1, "failed"), entry(2, "inconclusive"), entry(3, "unknown", "unknown"),
        entry(4, "contradicted", "$b_{<script>"), entry(5, "consistent", "b"),
    )  # fmt: skip
    for name in ("h.png", "h.html"):
        drawing.write(tmp_path / name, entries, "m$ at <script>alert(1)</script>")
    text = (tmp_path / "h.html").read_text("utf-8")
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")
    assert (
        "<script" not in text
        and 'src="http' not in text
        and text.count('class="alert"') == sum(e.alert for e in entries)
    )
    drawing.write(tmp_path / "one.png", entries[1:2], "one that failed")
    with pytest.raises(ConfigError, match="png or"):
        drawing.write(tmp_path / "h.svg", entries, "t")
    with pytest.raises(ConfigError, match="none"):
        drawing.write(tmp_path / "h.png", [], "t")

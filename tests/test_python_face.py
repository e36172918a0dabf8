"""`import hspi`: what docs/python.md promises, its examples run as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hspi
from conftest import Tree, free_port

PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text("utf-8")
COLLECT, JUDGE, AUDIT, WHOAMI = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_face_shows_what_it_promises_and_nothing_heavy_is_imported_for_it() -> None:
    assert set(hspi.__all__) <= set(dir(hspi)) and hspi.__all__ == sorted(hspi.__all__)
    for name in hspi.__all__:
        assert getattr(hspi, name).__doc__ and getattr(hspi, name).__module__.startswith("hspi.")
    with pytest.raises(AttributeError, match="no attribute 'whois'"):
        hspi.whois  # noqa: B018
    code = "import sys, hspi; print(*{'torch', 'numpy', 'xgboost', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


def test_functions_stay_functions_whatever_was_imported_before() -> None:
    """A package of the same name would take the attribute's place once anything imports it."""
    code = "import hspi.audits.run, hspi.signatures.collect, hspi.judging, hspi.identity\n"
    code += "import hspi.cli.audit, hspi.cli.whoami, hspi\n"
    code += "assert all(callable(getattr(hspi, n)) for n in ('audit', 'collect', 'judge', 'whoami'))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def served(smoke: Tree) -> Iterator[int]:
    """What the page's third example audits."""
    port = free_port()
    command = ["hspi", "serve", "--platform", "torch-bf16", "--model", "llama", "--port", str(port)]
    with smoke.serving(*command, ready=f"http://127.0.0.1:{port}/health"):
        yield port


def said(smoke: Tree, code: str) -> list[str]:
    """What the example prints, in the small pipeline's tree."""
    path = smoke.path.parent / f"example-{os.getpid()}.py"
    path.write_text(code, "utf-8")
    return smoke.run("python", str(path)).splitlines()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_examples_of_the_page_run_as_they_stand(smoke: Tree, served: int) -> None:
    path = said(smoke, COLLECT)[-1]
    assert Path(path).match("signatures/*/torch-fp32/llama/text.b1.parquet") and (smoke.path / path).exists()
    outcome, answer = said(smoke, JUDGE)[-1].split(" ", 1)
    assert outcome in ("consistent", "inconclusive") and answer
    audited = said(smoke, AUDIT.replace("127.0.0.1:8000", f"127.0.0.1:{served}"))
    assert audited[-1] in ("consistent 0", "inconclusive 3")
    assert (smoke.path / "audits" / "mine" / "manifest.json").exists()
    command = ["hspi", "audit", "--replay", "audits/mine", "--json"]
    again = subprocess.run(command, cwd=smoke.path, env=smoke.environment, capture_output=True, text=True, check=False)
    assert f"{json.loads(again.stdout)['outcome']} {again.returncode}" == audited[-1]
    assert said(smoke, WHOAMI)[-1].endswith("alike in 1 of 1 software")
    shutil.rmtree(smoke.path / "signatures")  # other tests find the tree as the pipeline left it

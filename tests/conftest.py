"""The pipeline on small parameters in a copy of this tree: run once, shared by the slow tests."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from hypothesis import settings

from hspi import quiet

ROOT = Path(__file__).parent.parent
quiet.be_quiet()  # before any test imports Prefect or MLflow
settings.register_profile("hspi", deadline=None)  # how long an example takes, the machine decides
settings.load_profile("hspi")


class Tree:
    """A checkout of its own. Tools run in it with this environment's packages and the tree's own sources."""

    def __init__(self, path: Path) -> None:
        self.path = path
        home = str(path / ".prefect")
        tools = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": tools, "PYTHONPATH": str(path / "src"), "PREFECT_HOME": home}

    def run(self, *command: str) -> str:
        """Its output, both streams; fails the test with the last of it where the command fails."""
        done = subprocess.run(
            command, cwd=self.path, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}: {done.stdout[-4000:]}"
        return done.stdout

    def datasets(self) -> list[str]:
        """The .dvc files of the signatures."""
        return sorted(str(path.relative_to(self.path)) for path in self.path.glob("data/signatures/*.dvc"))

    @contextmanager
    def serving(self, *command: str, ready: str, seconds: float = 120) -> Iterator[None]:
        """The command runs meanwhile and has answered at `ready`; it and what it started end with the block."""
        log = self.path.parent / f"{Path(command[0]).name}-{command[1]}.log"  # beside the tree, which it leaves clean
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=self.path, env=self.environment, stdout=file, stderr=file, start_new_session=True
            )
        try:
            deadline = time.monotonic() + seconds
            while not answers(ready):
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.3)
            yield
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:  # Prefect's worker sometimes waits for a server that is gone
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait(30)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def script(name: str) -> Any:
    """scripts/NAME.py as a module."""
    spec = util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[name] = util.module_from_spec(spec)  # dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """Every stage has run here, as in `make demo`: from what ships and from what this machine answers."""
    tree = Tree(script("smoke").make_smoke(tmp_path_factory.mktemp("smoke") / "tree"))
    tree.run("dvc", "pull", "--quiet", "data/zoo.dvc", *tree.datasets())
    tree.run(sys.executable, "scripts/demo.py")
    tree.run("dvc", "repro")
    yield tree


@pytest.fixture
def orchestrator(smoke: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The API of a Prefect server with a database and work pools of this test's own, which the tree's tools ask."""
    port = str(free_port())
    api = f"http://127.0.0.1:{port}/api"
    own = {"PREFECT_API_URL": api, "PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    for name, value in own.items():
        monkeypatch.setitem(smoke.environment, name, value)
    with smoke.serving("prefect", "server", "start", "--host", "127.0.0.1", "--port", port, ready=f"{api}/health"):
        for pool in ("hspi-cpu", "hspi-nvidia"):  # deploying wants all that prefect.yaml names
            smoke.run("prefect", "work-pool", "create", "--type", "process", pool)
        yield api
    assert not answers(f"{api}/health"), "the server ends with the test"


@pytest.fixture(scope="session")
def world() -> Any:
    """Synthetic platforms, see tests/synthetic.py."""
    import synthetic

    return synthetic.world()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fresh MLflow store for all tests: making it takes seconds, copying it does not."""
    from hspi import tracking

    root = tmp_path_factory.mktemp("migrated")
    with tracking.store.open_store(root):
        pass
    return root


PACKED: dict[str, bytes] = {}


@pytest.fixture
def packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same detector is the same archive (test_audits_folder), and compressing it is most of an audit's time."""
    from hspi.audits import folder as folders

    pack = folders.pack

    def remembered(source: Path, target: Path) -> None:
        files = sorted(p for p in source.rglob("*") if p.is_file())
        name = hashlib.sha256(b"".join(str(p.relative_to(source)).encode() + p.read_bytes() for p in files)).hexdigest()
        if name not in PACKED:
            pack(source, target)
            PACKED[name] = target.read_bytes()
        target.write_bytes(PACKED[name])

    monkeypatch.setattr(folders, "pack", remembered)


# ---------------------------------------------------------------- which tests share a worker

SMOKE = {
    "test_audits_levels",
    "test_flows",
    "test_monitor_live",
    "test_pipeline",
    "test_python_face",
    "test_tracking_server",
}  # the files that use `smoke`
SPREAD = {"test_numerics_matmul"}  # long, and its tests share nothing: dealt out last, one by one, they fill the gaps


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    strangers = {i.path.stem for i in items if "smoke" in getattr(i, "fixturenames", ())} - SMOKE
    if strangers:
        raise pytest.UsageError(f"SMOKE in {__file__} must name {', '.join(strangers)}, or the pipeline runs twice")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one file share its fixtures, and all that use the small pipeline share that, in one worker.

    By hand, because pytest-xdist 3.8 marks groups in an attribute that pytest 9.2 no longer reads: `loadgroup` alone
    deals out single tests, and every worker makes every fixture.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            name = Path(nodeid.partition("::")[0]).stem
            if name in SPREAD:
                return nodeid
            return "smoke" if name in SMOKE else name

    return ByFile(config, log)

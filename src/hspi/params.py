"""params.yaml as validated records.

Plain dataclasses and one small builder, because `hspi collect` reads them on bare GPU servers where only torch,
transformers, pyarrow and numpy (and what those bring, PyYAML among it) are installed.
"""

from __future__ import annotations

import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from hspi.errors import ConfigError
from hspi.probes import KINDS, ProbeSpec


@dataclass(frozen=True, slots=True)
class SetSize:
    size: int
    positions: int = 1
    top_k: int = 64


@dataclass(frozen=True, slots=True)
class Probes:
    seed: int
    length: int
    sets: dict[str, SetSize]

    def specs(self) -> list[ProbeSpec]:
        return [self.spec(name) for name in self.sets]

    def spec(self, name: str) -> ProbeSpec:
        if name not in self.sets or name not in KINDS:
            known = ", ".join(s for s in self.sets if s in KINDS)
            raise ConfigError(f"probe set must be one of {known}, but got {name!r}")
        s = self.sets[name]
        return ProbeSpec(name, name, s.size, self.length, self.seed, s.positions, s.top_k)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Collect:
    jobs: int = 2


@dataclass(frozen=True, slots=True)
class Tuning:
    """trials: finished ones that each study must hold."""

    trials: int = 12
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """seed splits the probes; top_k is what equivalence classes are measured on."""

    seed: int = 1
    top_k: int = 20


@dataclass(frozen=True, slots=True)
class Demo:
    """collect: platforms of the catalogue that the demonstration makes signatures of, here; use: what it trains on, in
    place of `Params.use`.
    """

    collect: list[str] = field(default_factory=list)
    use: list[str] = field(default_factory=lambda: ["*"])


@dataclass(frozen=True, slots=True)
class Params:
    """use: globs over full ids of platforms, `<hardware>/<software>`, whose signatures the pipeline reads; one without
    a slash means any hardware.
    """

    models: list[str]
    probes: Probes
    use: list[str] = field(default_factory=lambda: ["*"])
    demo: Demo = field(default_factory=Demo)
    collect: Collect = field(default_factory=Collect)
    tuning: Tuning = field(default_factory=Tuning)
    evaluation: Evaluation = field(default_factory=Evaluation)

    def __post_init__(self) -> None:
        self.probes.specs()
        once = {"models": self.models, "use": self.use}
        for what, names in {**once, "demo.collect": self.demo.collect, "demo.use": self.demo.use}.items():
            if twice := sorted({n for n in names if names.count(n) > 1}):
                raise ConfigError(f"{what} must be named once each, but {', '.join(twice)} comes again")
        for what, globs in {"use": self.use, "demo.use": self.demo.use}.items():
            if not globs or not all(globs):
                raise ConfigError(f"{what} must hold globs such as 'amd-zen3/*', but got {globs}")


def load(path: str | Path = "params.yaml") -> Params:
    """Read and validate. Raises ConfigError that names the key, what must hold and what came."""
    try:
        data = yaml.safe_load(Path(path).read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"params file must exist, but there is no {path}") from error
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} must be readable YAML, but: {str(error).splitlines()[0]}") from error
    return typing.cast(Params, _build(Params, data, str(path)))


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind` (a dataclass, list[...], dict[str, ...] or a plain type), or a ConfigError at `where`."""
    if is_dataclass(kind):
        return _build_record(kind, value, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        _expect(isinstance(value, list), where, "a list", value)
        return [_build(args[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict:
        _expect(isinstance(value, dict), where, "a mapping", value)
        return {str(k): _build(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if origin is typing.Literal:
        _expect(value in args, where, f"one of {args}", value)
        return value
    _expect(isinstance(value, kind) and isinstance(value, bool) == (kind is bool), where, kind.__name__, value)
    return value


def _build_record(kind: Any, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, "a mapping", value)
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(value) - set(known))
    if unknown:
        raise ConfigError(f"{where} must hold only {', '.join(known)}, but got {', '.join(unknown)}")
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING and n not in value]
    if needed:
        raise ConfigError(f"{where} must hold {', '.join(needed)}, but it does not")
    return kind(**{name: _build(hints[name], v, f"{where}.{name}") for name, v in value.items()})


def _expect(holds: bool, where: str, what: str, value: Any) -> None:
    if not holds:
        raise ConfigError(f"{where} must be {what}, but got {value!r}")

"""The stages of dvc.yaml, one plain verb each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from hspi.cli.common import Steps, params_option


def _stage(name: str, help: str) -> click.Command:
    @click.command(name, help=help)
    @params_option
    def verb(params_file: str) -> None:
        from hspi import params, stages

        function: Callable[..., Any] = getattr(stages, name)
        function(params.load(params_file), Steps(name))

    return verb


def _last(name: str, help: str) -> click.Command:
    @click.command(name, help=help)
    def verb() -> None:
        from hspi import stages

        found = getattr(stages, name)()
        for line in found if isinstance(found, list) else [f"{k}: {v}" for k, v in found.items()]:
            click.echo(line)

    return verb


COMMANDS = (
    _stage("reference", "Make the float64 references of every model and probe set."),
    _stage("featurize", "Align signatures with their references and measure equivalence classes."),
    _stage("tune", "Search detector and evidence parameters with Optuna; goes on after a kill."),
    _stage("train", "Fit the detector that ships and log it to MLflow."),
    _stage("evaluate", "Score every detector on what it never saw; write reports/metrics.json and tables."),
    _last("report", "Draw the pictures and the self-contained HTML report."),
    _last("register", "Log the evaluation and register the detector; champion if it beats the champion."),
)

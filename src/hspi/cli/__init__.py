"""The command line: parse, call one function, print.

Nothing heavy is imported before a verb needs it, so that `hspi --help` answers at once.
"""

from __future__ import annotations

import traceback
from typing import Any

import click

from hspi import __version__
from hspi.cli import audit, catalogue, monitor, signatures, stages, verdict, whoami
from hspi.errors import HspiError
from hspi.quiet import be_quiet


class _Verbs(click.Group):
    """Turns our errors into one line and their exit code, whatever verb they come from."""

    def invoke(self, ctx: click.Context) -> Any:
        be_quiet()
        try:
            return super().invoke(ctx)
        except HspiError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception:  # Python's own code for it, 1, would say that a claim is contradicted
            traceback.print_exc()
            ctx.exit(HspiError.exit_code)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def main() -> None:
    """Tell which hardware and software platform serves a language model.

    \b
    Examples:
      hspi platforms list                                 what this machine can run
      hspi collect --platform torch-bf16 --model llama    make signatures
      dvc repro                                           signatures to an evaluated detector
      hspi verdict FILE.parquet --claim torch-bf16        judge a signature
      hspi audit --base-url URL --model NAME --weights llama --claim torch-bf16
      hspi monitor --base-url URL --model NAME --weights llama    audit again: did the class change?
      hspi whoami                                         which known hardware this machine computes like
    """


for module in (catalogue, signatures, stages, verdict, audit, monitor, whoami):
    for command in module.COMMANDS:
        main.add_command(command)

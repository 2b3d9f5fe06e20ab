"""docs/cli.md: the help of every command."""

import click

from moeloom.tools.main import cli

WIDTH = 110


def cli_page() -> str:
    """The page, from the commands' own help."""
    whole = click.Context(cli, info_name="moeloom", terminal_width=WIDTH, **cli.context_settings)
    parts = [click.Context(command, whole, info_name=name) for name, command in sorted(cli.commands.items())]
    sections = [f"## {c.command_path}\n\n```text\n{c.command.get_help(c).strip()}\n```" for c in (whole, *parts)]
    return "\n\n".join(["# The command line", *sections]) + "\n"

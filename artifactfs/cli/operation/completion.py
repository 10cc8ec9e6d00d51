"""``artifact-fs completion``."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete artifact-fs.

    \b
    Examples:
      artifact-fs completion bash > /etc/bash_completion.d/artifact-fs
      artifact-fs completion zsh > "${fpath[1]}/_artifact-fs"
      artifact-fs completion fish > ~/.config/fish/completions/artifact-fs.fish
    """
    from artifactfs.cli.terminal.reference import completion_script

    program = click.get_current_context().find_root().command
    click.echo(completion_script(program, "artifact-fs", shell), nl=False)

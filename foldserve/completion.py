"""`foldserve completion bash`: a script by which a shell completes commands, their flags and files.

The commands are written into it; the flags are read from a command's own help when they are first asked for, since some
of them take a second to load.
"""

from collections.abc import Mapping, Sequence

from .arguments import Parser
from .exit_codes import DONE

_BASH = r"""_foldserve() {
  local current=${COMP_WORDS[COMP_CWORD]} command=${COMP_WORDS[1]} flags
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "COMMANDS" -- "$current"))
  elif [ "${current#-}" != "$current" ]; then
    flags="_foldserve_flags_${command//-/_}"
    if [ -z "${!flags}" ]; then
      printf -v "$flags" '%s' "$(foldserve "$command" --help 2>/dev/null | grep -oE -- '--[a-z][a-z0-9-]+' | sort -u)"
    fi
    COMPREPLY=($(compgen -W "${!flags}" -- "$current"))
  else
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}
complete -o filenames -F _foldserve foldserve
"""
_ZSH = "#compdef foldserve\nautoload -U +X bashcompinit && bashcompinit\n" + _BASH
_FISH = r"""LINES
complete -c foldserve -n 'not __fish_use_subcommand' -a '(foldserve (commandline -opc)[2] --help 2>/dev/null | \
  string match -ra -- "--[a-z][a-z0-9-]+" | sort -u)'
"""
SHELLS = ("bash", "zsh", "fish")


def main(argv: Sequence[str], commands: Mapping[str, str]) -> int:
    """Print the script of a shell; `commands` are names with what they do."""
    parser = Parser(
        prog="foldserve completion",
        description="Print what makes a shell complete foldserve's commands and flags.",
        epilog='bash and zsh: put `eval "$(foldserve completion bash)"` into .bashrc (zsh, .zshrc); fish: '
        "`foldserve completion fish > ~/.config/fish/completions/foldserve.fish`.",
    )
    parser.add_argument("shell", choices=SHELLS)
    print(script(parser.parse_args(argv).shell, commands), end="")
    return DONE


def script(shell: str, commands: Mapping[str, str]) -> str:
    """Return the script of one of `SHELLS`."""
    if shell == "fish":
        quoted = {name: text.replace("'", r"\'") for name, text in commands.items()}
        lines = [
            f"complete -c foldserve -n __fish_use_subcommand -f -a {name} -d '{text}'" for name, text in quoted.items()
        ]
        return _FISH.replace("LINES", "\n".join(lines))
    return (_ZSH if shell == "zsh" else _BASH).replace("COMMANDS", " ".join(commands))

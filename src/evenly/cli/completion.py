"""evenly completion: a script by which bash completes commands, options and their values."""

from argparse import Action

from jsonargparse import Namespace

from evenly.cli.commands import COMMANDS, parser
from evenly.cli.parser import Parser, choices, dashed
from evenly.cli.training import RECIPES
from evenly.lab.run.noted import catalogue

SCRIPT = """# Completion of the command evenly in bash, printed by 'evenly completion'.
_evenly() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} list="" words="" head=""
    if [[ $word == "=" ]]; then word=""
    elif [[ $before == "=" ]]; then before=${COMP_WORDS[COMP_CWORD-2]}
    fi
    before=${before//_/-}
    case "$COMP_CWORD ${COMP_WORDS[1]} $before" in
        "1 "*) words="COMMANDS" ;;
VALUES
    esac
    if [[ -n $list && $word == *,* ]]; then head=${word%,*},; fi
    if [[ -z $words && $word == -* ]]; then
        case "${COMP_WORDS[1]}" in
OPTIONS
        esac
        word=${word//_/-}
    fi
    COMPREPLY=($(compgen -P "$head" -W "$words" -- "${word#"$head"}"))
}
complete -o default -F _evenly evenly"""


def arguments() -> Parser:
    """The command's arguments."""
    return Parser(
        "Prints a script that lets bash complete commands, options, their values and the names of "
        "methods.\nTo install it:\n\n"
        "  mkdir -p ~/.local/share/bash-completion/completions\n"
        "  evenly completion > ~/.local/share/bash-completion/completions/evenly\n\n"
        "or, without the package bash-completion, save it anywhere and add to ~/.bashrc:\n\n"
        "  source PATH\n\n"
        "zsh takes the same script after: autoload -U bashcompinit && bashcompinit"
    )


def run(options: Namespace) -> None:
    """Prints the script."""
    print(script())


def script() -> str:
    """The script for bash."""
    values: list[str] = []
    offered: list[str] = []
    for command in COMMANDS:
        one = parser(command)
        known = [action for actions in one.listed().values() for action in actions]
        named = [action for action in known if action.option_strings]
        options = " ".join(dashed(action.dest) for action in named)
        offered.append(f'            {command}) words="{options}" ;;')
        values += (
            f'        *" {command} {dashed(action.dest)}") {found} ;;'
            for action in named
            if (found := _values(action, one))
        )
    names = " ".join(catalogue())
    values.append(f'        "2 methods "*) [[ $word == -* ]] || words="{names}" ;;')
    filled = SCRIPT.replace("COMMANDS", " ".join(COMMANDS), 1)
    return filled.replace("VALUES", "\n".join(values)).replace("OPTIONS", "\n".join(offered))


def _values(action: Action, one: Parser) -> str:
    """Code that sets the values of an option; empty if they are not a list."""
    if action.dest in ("method", "methods"):
        several = "list=1 " if action.dest == "methods" else ""
        return f'{several}words="{" ".join(catalogue())}"'
    if action.dest == "recipe":
        return f'words="{" ".join(sorted(RECIPES))}"'
    found = choices(action, one.hints.get(action.dest))
    return f'words="{" ".join(found)}"' if found else ""

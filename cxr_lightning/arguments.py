"""Mistakes on the command line, in one sentence each."""

import difflib
import inspect
import pydoc
import re
from collections.abc import Iterable
from typing import NoReturn

from jsonargparse import ArgumentParser

from cxr_lightning.errors import UserError

WORDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "a text",
    "<class 'list'>": "a list, such as [1, 2]",
    "<class 'dict'>": "a mapping, such as {name: value}",
}
"""Types as jsonargparse prints them, and in words."""

EXPECTED = re.compile(r"Expected an? (<class '[^']+'>|typing\.Literal\[[^\]]+\])")
GIVEN = re.compile(
    r"(?:Got|Given) value: (?:NestedArg\(key='[^']*', val=)?'?(.*?)'?\)?(?:\. Got value.*)?$",
    re.MULTILINE,
)
NO_CLASS = re.compile(
    r"Problem with given class_path '([^']+)':\s+(?:No module|module )"
    r"|Expected a path but (\S+) either"
)
UNKNOWN = re.compile(r"(?:[Oo]ption '([^']+)'(?: is not accepted)?|unrecognized arguments: (\S+))")


class OneSentence(ArgumentParser):
    """A parser whose errors are `UserError`s of one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises what jsonargparse would print below the usage.

        Parsers within this one, which try the alternatives of a type, do as ever.

        Raises:
            UserError: Naming argument, value and remedy.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        options = [option for action in parser._actions for option in action.option_strings]
        command = parser.prog.replace(" [options]", "")
        raise UserError(explain(message, command, options)) from ex


def explain(message: str, command: str, options: Iterable[str]) -> str:
    """One sentence for what jsonargparse says in many lines.

    Args:
        message: From jsonargparse.
        command: What was typed, `cxr fit` or the like.
        options: Those of the command, with their dashes.
    """
    keys = re.findall(r'Parser key "([^"]+)"', message)
    classes = re.findall(r"Problem with given class_path '([^']+)'", message)
    unknown = UNKNOWN.search(message)
    missing = re.search(r"arguments are required: (.*)", message)
    valueless = re.search(r"argument (\S+): expected", message)
    no_file = re.search(r"File does not exist: '(.*)'", message)
    no_class = NO_CLASS.search(message)
    remedy = f"see '{command} --help'"
    if missing:
        names = re.sub(r"\b(?:fit|validate|test|predict)\.", "", missing[1])
        return f"{names}: not given; it is an option, or a line in the file of --config."
    if valueless:
        return f"{valueless[1].lstrip('-')}: its value is missing; {remedy}."
    if no_file:
        return f"{keys[-1] if keys else 'config'}: there is no file {no_file[1]}; give another."
    if unknown:
        given_name = (unknown[1] or unknown[2]).split("=")[0]
        name = given_name.lstrip("-")
        if classes:
            known, owner = _nearest(name, _settings(classes[-1])), classes[-1].split(".")[-1]
            place = ".init_args.".join([*keys, name])
            other = f"see '{command} --{keys[0]}.help {classes[0]}'"
            return f"{place}: {owner} has no such setting; {_use(known, other)}."
        is_option = unknown[1] or given_name.startswith("-")
        known = _nearest(f"--{name}", options) if is_option else None
        return f"{name}: there is no such option; {_use(known, remedy)}."
    if "item assignment" in message:  # of nargs="+" from a file
        return "config: an option of several values has one; write it as a list, such as [a]."
    inner = message[message.rfind("Parser key") :] if keys else message
    wanted = [_in_words(kind) for kind in EXPECTED.findall(inner)]
    given = GIVEN.search(inner)
    if keys and wanted and given and any(wanted):
        choice = ", or ".join(word for word in wanted if word)
        return f"{'.init_args.'.join(keys)}: {given[1]} is not possible; use {choice}."
    if keys and no_class:
        named = no_class[1] or no_class[2]
        return f"{'.init_args.'.join(keys)}: {named} cannot be imported; give the path of a class."
    return f"{' '.join(message.split())}; {remedy}."


def _in_words(kind: str) -> str:
    """A type in words; empty for one that nobody types."""
    if kind.startswith("typing.Literal["):
        *first, last = (value.strip(" '") for value in kind[len("typing.Literal[") : -1].split(","))
        return f"{', '.join(first)} or {last}" if first else last
    return WORDS.get(kind, "")


def _settings(owner: str) -> list[str]:
    """The settings of a class, by its import path."""
    found = pydoc.locate(owner)
    return list(inspect.signature(found).parameters) if callable(found) else []


def _nearest(name: str, known: Iterable[str]) -> str | None:
    """What was probably meant."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def _use(known: str | None, remedy: str) -> str:
    return f"use {known}, or {remedy}" if known else remedy

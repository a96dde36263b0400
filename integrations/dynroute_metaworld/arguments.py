"""The command line of a dataclass: every field is a flag, and what is not given keeps its default."""

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Collection
from typing import Any

from .runs.configuration import KEYWORDS, Configuration, kinds_of

__all__ = ["add_options", "given_options", "key_value"]


def add_options(parser: argparse.ArgumentParser, without: Collection[str] = ()) -> None:
    """Adds a flag for each field of :class:`~dynroute_metaworld.Configuration`, in groups, but for some."""
    groups: dict[str, Any] = {}
    hints = typing.get_type_hints(Configuration)
    for option in dataclasses.fields(Configuration):
        if option.name in without:
            continue
        about = option.metadata
        if (group := groups.get(about["group"])) is None:
            group = groups[about["group"]] = parser.add_argument_group(about["group"])
        flag, kinds = "--" + option.name.replace("_", "-"), kinds_of(hints[option.name])
        kind = kinds[0]
        common: dict[str, Any] = {"dest": option.name, "default": argparse.SUPPRESS}
        default = f" ({option.default})" if option.default not in (None, dataclasses.MISSING) else ""
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=about["about"] + default, **common)
        elif kind is dict:
            group.add_argument(flag, nargs="+", type=key_value, metavar="NAME=VALUE", help=about["about"], **common)
        else:
            optional = types.NoneType in kinds and option.default is not None
            told = f"{'|'.join(about['choices'])}: " if about["choices"] and option.name != "method" else ""
            group.add_argument(
                flag,
                type=_reader(kind, optional=optional),
                metavar=kind.__name__.upper(),
                help=f"{told}{about['about']}{default}" + (", or none" if optional else ""),
                **common,
            )


def given_options(namespace: argparse.Namespace) -> dict[str, Any]:
    """The options of :class:`~dynroute_metaworld.Configuration` that were given."""
    names = {option.name for option in dataclasses.fields(Configuration)}
    given = {name: value for name, value in vars(namespace).items() if name in names}
    return {name: dict(value) if name in KEYWORDS else value for name, value in given.items()}


def key_value(text: str) -> tuple[str, Any]:
    """A name and a value, which is JSON or else a word.

    Example:
        >>> from dynroute_metaworld.arguments import key_value
        >>> key_value("trunk_sizes=[64, 64]"), key_value("attention=dot")
        (('trunk_sizes', [64, 64]), ('attention', 'dot'))
    """
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} must be name=value, for instance num_modules=8")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _reader(kind: type, *, optional: bool) -> Any:
    def read(text: str) -> Any:
        if optional and text.lower() == "none":
            return None
        try:
            return kind(text.replace("_", "") if kind is int else text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} must be a number of type {kind.__name__}") from error

    return read

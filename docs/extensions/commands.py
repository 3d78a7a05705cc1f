"""Directives that write down what the code knows: commands with their options, strategies, metrics."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import click
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

_CODE = re.compile(r"(--[a-z][-a-z]*|'[^' ]*[{=/.][^']*'|\b[\w/*.-]+\.(?:py|safetensors|json)\b)")


def setup(app: Any) -> dict[str, Any]:
    """Register the directives: ``{commands}``, ``{strategies}``, ``{metrics}``."""
    app.add_directive("commands", Commands)
    app.add_directive("strategies", Strategies)
    app.add_directive("metrics", Metrics)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


class Commands(SphinxDirective):
    """A section for each command: how it is called, what it does, its arguments and options."""

    def run(self) -> list[nodes.Node]:
        """The sections, in the order of ``radin --help``."""
        from radin.cli.group import cli

        return [self._section(name, command) for name, command in cli.commands.items()]

    def _section(self, name: str, command: click.Command) -> nodes.section:
        section = nodes.section(ids=[f"radin-{name}"], names=[f"radin {name}"])
        self.state.document.note_explicit_target(section, section)
        section += nodes.title("", f"radin {name}")
        context = click.Context(command, info_name=f"radin {name}")
        usage = " ".join([f"radin {name}", *command.collect_usage_pieces(context)])
        section += nodes.literal_block("", usage, language="text")
        for paragraph in (command.help or "").split("\n\n"):
            if paragraph.startswith("\b"):
                lines = [line.strip() for line in paragraph.splitlines()[1:]]
                section += nodes.literal_block("", "\n".join(lines), language="text")
            else:
                section += nodes.paragraph("", "", *_words(" ".join(paragraph.split())))
        section += nodes.definition_list("", *(_option(o, context) for o in command.params if _shown(o)))
        return section


class Strategies(SphinxDirective):
    """A definition for each strategy: what it does, and its options with their defaults."""

    def run(self) -> list[nodes.Node]:
        """One definition list."""
        from radin.search.strategies import base

        found = nodes.definition_list()
        for name in base.names():
            strategy = base.get(name)
            options = [
                (f"-O {option.name}={option.default}", [nodes.paragraph("", "", *_words(option.help))])
                for option in strategy.options
            ]
            body: list[nodes.Node] = [nodes.paragraph("", "", *_words(strategy.summary))]
            if options:
                body.append(nodes.definition_list("", *(_item(*option) for option in options)))
            found += _item(name, body)
        return [found]


class Metrics(SphinxDirective):
    """A definition for each metric that has a name: what it is, which direction is better, what targets it needs."""

    def run(self) -> list[nodes.Node]:
        """One definition list."""
        from radin import metrics

        found = nodes.definition_list()
        for metric in map(metrics.get, metrics.names()):
            better = "Higher" if metric.higher_is_better else "Lower"
            text = f"{metric.about}. {better} is better. Targets: {metrics.TARGET_KINDS[metric.targets]}."
            found += _item(metric.name, [nodes.paragraph("", text[:1].upper() + text[1:])])
        return [found]


def _shown(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and not parameter.hidden


def _option(option: click.Parameter, context: click.Context) -> nodes.definition_list_item:
    assert isinstance(option, click.Option)
    record = option.get_help_record(context)
    assert record is not None
    names, text = record
    text = re.sub(r"  \[(.*)\]$", lambda found: f" ({found[1]})", text).strip()
    return _item(names, [nodes.paragraph("", "", *_words(text))])


def _item(term: str, body: Iterable[nodes.Node]) -> nodes.definition_list_item:
    return nodes.definition_list_item("", nodes.term("", "", nodes.literal("", term)), nodes.definition("", *body))


def _words(text: str) -> list[nodes.Node]:
    """Text with what can be typed in the font of code."""
    return [nodes.literal("", part) if place % 2 else nodes.Text(part) for place, part in enumerate(_CODE.split(text))]

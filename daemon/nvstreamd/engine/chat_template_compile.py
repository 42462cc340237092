"""How is a template compiled so that its constants stay known as its own? jinja2, with the string type exchanged.

Only the code that jinja2 generates for constants and for joining them differs: what a template sees, and which way it
takes, is what it would be under Hugging Face's options.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_mark_safe, make_attrgetter
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_eval_context

from nvstreamd.engine.chat_template_own import OwnText, concat, join, own


@dataclass(frozen=True)
class Compiled:
    """A template ready to be rendered.

    Attributes:
        template: jinja2's.
        constants: every text that stands in its source and may come into a prompt.
    """

    template: Template
    constants: tuple[str, ...]


def compile_template(source: str) -> Compiled:
    """Raises jinja2's TemplateSyntaxError, and whatever its parser raises on hostile text."""
    environment = _Environment()
    template = environment.from_string(source)
    return Compiled(template, tuple(environment.constants))


class _Generator(CodeGenerator):
    """Writes the constants of a template as its own text."""

    environment: _Environment

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        self.write(self._constant(node.as_const(frame.eval_ctx)))

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.concat_all((")
        for arg in node.nodes:
            self.visit(arg, frame)
            self.write(", ")
        self.write("))")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return self._constant("".join(group))

    def _constant(self, value: object) -> str:
        """Python source of a constant. The optimiser folds lists, too."""
        match value:
            case str():
                self.environment.constants.setdefault(value, own(value))
                return f"environment.constants[{value!r}]"
            case list():
                return f"[{', '.join(map(self._constant, value))}]"
            case tuple():
                return f"({''.join(self._constant(item) + ', ' for item in value)})"
            case dict():
                return f"{{{', '.join(f'{self._constant(k)}: {self._constant(v)}' for k, v in value.items())}}}"
        return repr(value)


class _Generation(Extension):
    """Accepts {% generation %}, which marks what a model is trained on, and means nothing here."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(ImmutableSandboxedEnvironment):
    """With the options that Hugging Face's models are written for."""

    code_generator_class = _Generator
    concat = staticmethod(concat)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.constants: dict[str, OwnText] = {}
        self.filters.update(tojson=_to_json, join=_join, safe=_safe)
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)

    @staticmethod
    def concat_all(parts: Iterable[object]) -> str:
        """The operator `~`."""
        return concat(map(str, parts))


@pass_eval_context
def _join(context: EvalContext, value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    """jinja2's filter; it makes a plain text of the separator."""
    if attribute is not None:
        value = map(make_attrgetter(context.environment, attribute), value)
    return join(str(d), map(str, value))


def _safe(value: Any) -> str:
    """jinja2's filter, which means nothing where nothing is escaped; a template's own text must stay it."""
    return value if isinstance(value, OwnText) else do_mark_safe(value)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)

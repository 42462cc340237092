"""What does one question to the worker yield? A rendered text, stretch by stretch, or why there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Template

from nvstreamd.engine.chat_template_compile import Compiled, compile_template
from nvstreamd.engine.chat_template_own import own, stretches


def render(template: Template, variables: Mapping[str, Any], limit: int) -> list[str]:
    """The text by who wrote it, built piece by piece so that it can be stopped.

    Raises:
        OverflowError: more than `limit` characters.
    """
    parts: list[str] = []
    size = 0
    for part in template.generate(**variables):
        size += len(part)
        if size > limit:
            raise OverflowError(f"more than {limit} characters of output")
        parts.append(part)
    return stretches(parts)


def with_own(request: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of a request, those texts marked that the template may write as if it said them itself."""
    roles = {role: own(role) for role in request["roles"]}
    messages = [{**each, "role": roles.get(each["role"], each["role"])} for each in request["messages"]]
    return {**request["variables"], **{name: own(text) for name, text in request["own"].items()}, "messages": messages}


def answer(request: Mapping[str, Any], cache: dict[str, Compiled], limit: int) -> object:
    """The answer to one request.

    Args:
        request: `template`; `messages` and other `variables`; what of them is the template's own: variables in `own`,
            by name, and `roles` that it may write as if it said them; `constants`, whether those are wanted.
        cache: the template compiled last.
        limit: characters of the text.

    Returns:
        `parts`, the text by who wrote it (`stretches`), and perhaps `constants`; or `failure` and `message`.
    """
    source = request["template"]
    try:
        if source not in cache:
            cache.clear()
            cache[source] = compile_template(source)
        answer: dict[str, object] = {"parts": render(cache[source].template, with_own(request), limit)}
        if request["constants"]:
            answer["constants"] = cache[source].constants
        return answer
    except MemoryError:
        return {"failure": "MemoryError", "message": "it needs too much memory"}
    except Exception as error:  # a template is untrusted code: whatever it raises is an answer, not a crash
        return {"failure": type(error).__name__, "message": str(error)[:1000]}

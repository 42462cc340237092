"""Does a model's template work here? Tried when the model is loaded, so that an administrator hears of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from nvstreamd.engine.chat_template import KEY, ChatTemplate, Message, Renderer, find_template
from nvstreamd.engine.tokenizer import ChatTemplateError, Tokenizer, TokenizerError

# A template may refuse one of these: not each knows a system message.
_TRIALS: Final[tuple[tuple[Message, ...], ...]] = (
    ({"role": "user", "content": "alpha"},),
    (
        {"role": "user", "content": "alpha"},
        {"role": "assistant", "content": "bravo"},
        {"role": "user", "content": "charlie"},
    ),
    ({"role": "system", "content": "delta"}, {"role": "user", "content": "alpha"}),
)


def notes_on(metadata: Mapping[str, object], tokenizer: Tokenizer, renderer: Renderer) -> tuple[str, ...]:
    """The faults of a model file's chat template: none for most, and for files without one."""
    if KEY not in metadata:
        return ()
    try:
        template = find_template(metadata)
        lost = [_loses(template, messages, tokenizer, renderer) for messages in _TRIALS[:2]]
    except (ChatTemplateError, TokenizerError, ValueError) as error:
        return (f"chat does not work with this file: {error}",)
    with suppress(ChatTemplateError):  # a template without system messages says so to who sends one
        lost.append(_loses(template, _TRIALS[2], tokenizer, renderer))
    if any(lost):
        return (
            f"{KEY} makes control tokens in a way that cannot be told from what a message makes, "
            "so the model gets them as text; its answers will suffer",
        )
    return ()


def _loses(template: ChatTemplate, messages: tuple[Message, ...], tokenizer: Tokenizer, renderer: Renderer) -> bool:
    """True when tokens that the template spells come out as text. The messages of the trials spell none themselves."""
    prompt = renderer.render(template, messages)
    parts = [(passage.text, passage.special) for passage in prompt.passages]
    return tokenizer.encode_parts(parts, True, prompt.structure) != tokenizer.encode(prompt.text, True, True)

"""How do tokenizers and chat templates say what is wrong with a model file? Field, what, and what to do."""

from __future__ import annotations


class _FieldError(ValueError):
    """An error about one GGUF field.

    Attributes:
        field: the GGUF key it is about.
        hint: what the user can do.
    """

    def __init__(self, field: str, message: str, hint: str) -> None:
        super().__init__(f"{field}: {message} ({hint})")
        self.field = field
        self.hint = hint


class TokenizerError(_FieldError):
    """The tokenizer metadata of a model file cannot be used."""


class ChatTemplateError(_FieldError):
    """A model's chat template is missing, broken or misbehaves."""

"""What does the `sentencepiece` library make of a GGUF's vocabulary? Its own model, built of the same pieces."""

from __future__ import annotations

from sentencepiece import SentencePieceProcessor
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from unit.tokenizer.pairs import G

NORMAL, UNKNOWN, CONTROL, DEFINED, UNUSED = 1, 2, 3, 4, 5
MARK = "\u2581"


def reference(metadata: dict[str, object], prefix: bool) -> SentencePieceProcessor:
    """SentencePiece's model of a vocabulary; `prefix` is whether a space is put before a text."""
    proto = ModelProto()
    tokens, scores, types = (metadata[G + name] for name in ("tokens", "scores", "token_type"))
    assert isinstance(tokens, list) and isinstance(scores, list) and isinstance(types, list)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    for name, field in (("unknown", "unk_id"), ("bos", "bos_id"), ("eos", "eos_id"), ("padding", "pad_id")):
        if f"{G}{name}_token_id" in metadata:
            setattr(trainer, field, metadata[f"{G}{name}_token_id"])
    for token, (text, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
        # Converters write a run of blanks as blanks, and call the unknown token a control token.
        piece = text.replace(" ", MARK) if kind == DEFINED else text
        proto.pieces.add(piece=piece, score=score, type=UNKNOWN if token == trainer.unk_id else kind)
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(tokens)
    trainer.byte_fallback = True
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = prefix
    normalizer.remove_extra_whitespaces = False
    normalizer.escape_whitespaces = True
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(proto.SerializeToString())
    return processor

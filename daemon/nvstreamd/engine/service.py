"""How is an engine put together from a load command?"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from nvstreamd.engine.channel import Channel
from nvstreamd.engine.chat_template_check import notes_on
from nvstreamd.engine.claimed import ClaimedDrives
from nvstreamd.engine.describe import facts, read_model
from nvstreamd.engine.encoder import Encoder
from nvstreamd.engine.heart import Heart, Signs
from nvstreamd.engine.kv_pages import KvPages
from nvstreamd.engine.load import Wishes, load, placement_message
from nvstreamd.engine.preparation.forks import Forks
from nvstreamd.engine.preparation.worker import work
from nvstreamd.engine.prompts import Prompts, load_tokenizer
from nvstreamd.engine.scheduler import Scheduler
from nvstreamd.engine.server import Server
from nvstreamd.engine.walls import make_no_more_rings
from nvstreamd.kernels.batch import PAGE_TOKENS
from nvstreamd.weights.files import OpenFile
from nvstreamd.wire.engine_pb2 import FromEngine, Load
from nvstreamd.wire.engine_pb2 import Loaded as LoadedMessage


def serve(channel: Channel, command: Load, files: Sequence[OpenFile], drives: ClaimedDrives, stack: ExitStack,
          notes: Sequence[str]) -> None:
    """Loads and serves until the daemon is gone; `status` shows `notes` beside its own. Raises NvstreamError."""
    model = drives.attach(read_model(files))
    tokenizer = load_tokenizer(files[0].path, model.manifest.metadata, model.hyper.vocabulary)
    encoder = Encoder(model.manifest.metadata, tokenizer)
    # Before there are weights, threads and a heart: a worker has none of them.
    forks = Forks(lambda asked, costly: work(asked, encoder, costly))
    forks.start(stack)
    heart = Heart(channel, lambda: Signs(0, work=False))
    heart.start(stack)
    wishes = Wishes(command.budget, command.kv_budget, tuple(command.backends), tuple(command.kernels),
                    command.threads, drives)
    loaded = load(model, wishes, stack)
    limit = min(model.hyper.context, loaded.kv_pages * PAGE_TOKENS, command.max_context or model.hyper.context)
    scheduler = Scheduler(KvPages(loaded.kv_pages, PAGE_TOKENS), command.max_running, command.prefill_chunk)
    placement = placement_message(loaded)
    placement.notes.extend([*notes, *make_no_more_rings()])
    placement.notes.extend(f"tokenizer: {note}" for note in tokenizer.notes)
    placement.notes.extend(notes_on(model.manifest.metadata, tokenizer, encoder.renderer))
    encoder.renderer.close()
    channel.send(FromEngine(loaded=LoadedMessage(facts=facts(model), placement=placement)))
    prompts = Prompts(tokenizer, model.hyper.vocabulary, limit)
    Server(channel, loaded, prompts, scheduler, forks).serve(heart, stack)

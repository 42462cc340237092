"""How is an engine put together from a load command?"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack

from nvstreamd.engine.channel import Channel
from nvstreamd.engine.chat_template_check import notes_on
from nvstreamd.engine.claimed import ClaimedDrives
from nvstreamd.engine.commands import Load
from nvstreamd.engine.describe import facts, read_model
from nvstreamd.engine.encoder import Encoder
from nvstreamd.engine.heart import Heart, Signs
from nvstreamd.engine.load import Wishes, load, placement_message
from nvstreamd.engine.loop import Loop
from nvstreamd.engine.on_card import card_wishes
from nvstreamd.engine.preparation.forks import Forks
from nvstreamd.engine.preparation.worker import work
from nvstreamd.engine.prompts import Prompts, load_tokenizer
from nvstreamd.engine.scheduler import FIRST, Scheduler
from nvstreamd.engine.to_daemon import loaded_message
from nvstreamd.engine.walls import make_no_more_rings, make_no_more_sockets
from nvstreamd.trace import open_trace
from nvstreamd.weights.packed.files import OpenFile

log = logging.getLogger(__name__)


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
    wishes = Wishes(command.memory, command.budget, command.kv_budget, command.max_running, tuple(command.backends),
                    tuple(command.kernels), command.threads, drives, card_wishes(command.vram))
    trace, traced = open_trace(os.environ, stack)
    loaded = load(model, wishes, stack, trace)
    cache = loaded.kv_cache()
    limit = min(model.hyper.context, cache.longest(FIRST), command.max_context or model.hyper.context)
    scheduler = Scheduler(cache, command.max_running,
                          loaded.pacing(command.latency_seconds or None, command.prefill_chunk))
    placement = placement_message(loaded)
    placement.notes.extend([*notes, *traced, *make_no_more_rings(), *make_no_more_sockets()])
    placement.notes.extend(f"tokenizer: {note}" for note in tokenizer.notes)
    placement.notes.extend(notes_on(model.manifest.metadata, tokenizer, encoder.renderer))
    encoder.renderer.close()
    log.info("serves by %s, arithmetic %s, path %s; %d of %d bytes of weights stream in each pass", placement.kernel,
             placement.arithmetic, placement.backend, placement.streamed_bytes_per_pass,
             sum(segment.nbytes for segment in model.manifest.segments))
    channel.send(loaded_message(facts(model), placement))
    prompts = Prompts(tokenizer, model.hyper.vocabulary, limit)
    Loop(channel, loaded, prompts, scheduler, forks).serve(heart, stack)

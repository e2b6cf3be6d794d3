"""`needle generate`."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from needle.apps import checkpoint, runs, sources
from needle.apps.checkpoint import Checkpoint, CheckpointError
from needle.apps.checkpoints import data_folder, model_file
from needle.apps.commands.base import CommandError, app, mistakes, prepare_machine
from needle.apps.commands.options import DeviceName, Json, Model, RunsDir, Threads, checked
from needle.apps.config import at_least
from needle.apps.generate import PromptError, Sampling, encode, generate, pieces, printable
from needle.apps.models import LanguageModel
from needle.apps.report import print_json
from needle.data.text import UNKNOWN


def _seed(value: float) -> None:
    if not 0 <= value < 2**32:
        raise ValueError(f"got {value}: need 0 <= seed < 2**32")


@app.command("generate")
def generate_text(
    model: Model,
    prompt: Annotated[
        str,
        typer.Option(
            help="Words to begin with, between spaces; an unknown one is taken for <unk>.",
            show_default="the beginning of a sentence",
        ),
    ] = "",
    length: Annotated[
        int, typer.Option(callback=checked(at_least(0)), help="Words to write.")
    ] = 100,
    temperature: Annotated[
        float,
        typer.Option(
            callback=checked(at_least(0)),
            help="Below 1 likely words become likelier, above 1 rare ones do; 0 always takes the "
            "likeliest.",
        ),
    ] = 1.0,
    top_k: Annotated[
        int | None,
        typer.Option(
            callback=checked(at_least(1)),
            help="Choose among so many likeliest words.",
            show_default="all",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            callback=checked(_seed),
            help="Fixes the text.",
            show_default="a new one each time, told on stderr",
        ),
    ] = None,
    unknown: Annotated[
        bool, typer.Option("--unk/--no-unk", help="Whether <unk> may be written.")
    ] = True,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the text it was trained on, for a checkpoint without its words.",
            show_default="that of its run, or searched for",
        ),
    ] = None,
    device: DeviceName = None,
    threads: Threads = None,
    runs_dir: RunsDir = runs.ROOT,
    as_json: Json = False,
) -> None:
    """Write text with a trained language model: the prompt, and on from there.

    Example: needle generate latest --prompt "the company said" --temperature 0.8 --seed 1
    """
    with mistakes():
        where = prepare_machine(device, threads)
        content = checkpoint.read(model_file(model, runs_dir))
        words = _words(content, data_dir)
        ids, missing = encode(prompt, words)
        banned = tuple(i for i, word in enumerate(words) if word == UNKNOWN and not unknown)
        sampling = Sampling(temperature, top_k, banned)
        network = content.spec.build(where)
        content.fill(network)
    assert isinstance(network, LanguageModel)
    if missing:
        names = ", ".join(map(printable, missing))
        typer.echo(f"note: not in the vocabulary, taken for {UNKNOWN}: {names}", err=True)
    if seed is None:
        seed = secrets.randbelow(2**32)
        if temperature > 0:
            typer.echo(f"note: --seed {seed} writes this text again", err=True)
    told = ids if prompt.strip() else []
    rest = generate(network, ids, length, sampling, np.random.default_rng(seed))
    try:
        if as_json:
            text = "".join(pieces([*told, *rest], words))
            print_json({"prompt": prompt, "seed": seed, "unknown": missing, "text": text})
            return
        for piece in pieces(chain(told, rest), words):
            typer.echo(piece, nl=False)  # word by word: one can watch it being written
    except PromptError as error:  # a reader that has gone is no mistake
        raise CommandError(str(error)) from error
    typer.echo()


def _words(content: Checkpoint, data_dir: Path | None) -> Sequence[str]:
    """The model's vocabulary: the checkpoint's own, or the data's, if it is the same.

    Raises:
        CheckpointError: it is not a language model, or the data's words are others.
        OSError: it must be the data's, and they are not there.
    """
    spec = content.spec
    if spec.model != "lm":
        raise CheckpointError(
            f"generate: not a language model: {content.path} is {spec.model}: need one of train lm "
            "(images: needle predict)"
        )
    if spec.words:
        if data_dir is not None:
            text = f"note: --data-dir {data_dir} is not read: {content.path} holds its own words"
            typer.echo(text, err=True)
        return spec.words
    folder = data_dir or data_folder(content.path, spec.data)
    source = sources.text(spec.data, folder, lambda text: typer.echo(text, err=True))
    if source.vocabulary != spec.vocabulary:
        raise CheckpointError(
            f"generate: vocabularies differ: {content.path} knows {spec.config['output_size']} "
            f"words of {spec.data}, {source.name} has {source.vocabulary_size} other ones: need "
            "the text it was trained on as --data-dir"
        )
    return source.words

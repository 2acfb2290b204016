"""The command line: ``python -m cpuinfer_helpers generate``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from cpuinfer_helpers.commands.shared import exit_code, say
from cpuinfer_helpers.display import format_seconds
from cpuinfer_helpers.errors import InputError, first_line
from cpuinfer_helpers.machine.paths import given_path
from cpuinfer_helpers.saving.folders import MANIFEST, check_target

_RECIPE = "torchscript-fp16w"
_NEW_TOKENS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of this command."""
    parser.add_argument(
        "--model", required=True, help="a folder that save_pretrained or --save wrote, or a name on the hub"
    )
    parser.add_argument("--prompt", action="append", help="what to continue, or what an encoder reads; several times")
    parser.add_argument("--prompt-file", metavar="FILE", help="a file whose whole text is continued")
    parser.add_argument("--recipe", help=f"how to run it (default {_RECIPE}); a folder of --save has its own")
    parser.add_argument("--max-new-tokens", type=int, default=_NEW_TOKENS, help=f"at most so many ({_NEW_TOKENS})")
    parser.add_argument("--temperature", type=float, default=0.0, help="draw tokens at random; 0: the likeliest ones")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at random (default 0)")
    parser.add_argument("--prompt-lookup", type=int, default=0, metavar="N", help="draft N tokens from the prompt")
    parser.add_argument("--save", metavar="DIR", help="write what was prepared to this folder, to be run again")
    parser.add_argument("--receipt", action="store_true", help="print what was seen of weights, cache and checks")


def run(options: argparse.Namespace) -> int:
    """Print what the model writes as it comes.

    Returns
    -------
    int
        Exit code: 0; 2 with one line on standard error if the request cannot be carried out; 130 after Ctrl-C.
    """
    return exit_code("generate", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    prompts = _prompts(options)
    _check_numbers(options)
    folder = given_path(options.model, "--model")
    is_saved = (folder / MANIFEST).is_file()
    if options.save:
        _check_save(options, is_saved)
    generator, tokenizer = _loaded(options, folder) if is_saved else _prepared(options, prompts)
    if generator.reason:
        say(f"generate: {generator}")
    if options.receipt:
        print(generator.receipt, flush=True)
    for prompt in prompts:
        _write(generator, tokenizer, prompt, options)
    return 0


def _prompts(options: argparse.Namespace) -> list[str]:
    prompts = list(options.prompt or ())
    if options.prompt_file:
        path = given_path(options.prompt_file, "--prompt-file")
        try:
            prompts.append(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--prompt-file {options.prompt_file} cannot be read: {error}") from error
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise InputError("there is no text to continue; give --prompt or --prompt-file")
    return prompts


def _check_numbers(options: argparse.Namespace) -> None:
    if options.max_new_tokens < 1:
        raise InputError(f"--max-new-tokens is {options.max_new_tokens}; give at least 1")
    if not 0 <= options.temperature < 100:
        raise InputError(f"--temperature is {options.temperature}; give a number from 0 on")
    if options.prompt_lookup < 0:
        raise InputError(f"--prompt-lookup is {options.prompt_lookup}; give a number from 0 on")


def _check_save(options: argparse.Namespace, is_saved: bool) -> None:
    from cpuinfer_helpers.generation.saved import KIND

    if is_saved:
        raise InputError(f"{options.model} has been saved already; copy that folder")
    check_target(options.save, KIND)


def _loaded(options: argparse.Namespace, folder: Path) -> tuple[Any, Any]:
    from cpuinfer_helpers.generation.loading import load_generator
    from cpuinfer_helpers.tasks.checkpoints import load_tokenizer

    if options.recipe:
        raise InputError(f"{options.model} was saved with a recipe of its own; leave --recipe out")
    return load_generator(folder), load_tokenizer(folder)


def _prepared(options: argparse.Namespace, prompts: list[str]) -> tuple[Any, Any]:
    from cpuinfer_helpers.generation import prepare_generator
    from cpuinfer_helpers.generation.registry import generation_recipe

    recipe = generation_recipe(options.recipe or _RECIPE)
    model, tokenizer = _model(options.model)
    generator = prepare_generator(recipe, model, _encoded(tokenizer, prompts[0], model.config))
    if options.save:
        saved = generator.save(options.save, model=model, tokenizer=tokenizer)
        print(f"saved to {saved}", file=sys.stderr, flush=True)
    return generator, tokenizer


def _model(name: str) -> tuple[Any, Any]:
    from cpuinfer_helpers.tasks import hub
    from cpuinfer_helpers.tasks.checkpoints import load_config, load_tokenizer, load_weights

    def load(folder: Path) -> tuple[Any, Any]:
        kind = "AutoModelForSeq2SeqLM" if load_config(folder).is_encoder_decoder else "AutoModelForCausalLM"
        return load_weights(kind, folder, use_safetensors=True), load_tokenizer(folder)

    if given_path(name, "--model").is_dir():
        try:
            return load(Path(name))
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{name} holds no language model in safetensors: {first_line(error)}") from error
    try:
        return hub.load_or_download_again(name, load)
    except InputError:
        raise
    except Exception as error:  # a hub can fail in any phase, each library with errors of its own
        unavailable = hub.hub_unavailable()
        why = unavailable or str(error).strip().splitlines()[0]
        raise InputError(f"{name} is no folder here, and cannot be fetched from the hub: {why}") from error


def _encoded(tokenizer: Any, prompt: str, config: Any) -> dict[str, Any]:
    encoded = tokenizer(prompt, return_tensors="pt")
    ids = encoded["input_ids"]
    if ids.shape[1] == 0:
        raise InputError(f"the tokenizer makes no token of {prompt!r:.80}")
    size = getattr(config, "src_vocab_size", None) or config.get_text_config(decoder=True).vocab_size
    if int(ids.max()) >= size:
        raise InputError(
            f"token {int(ids.max())} of the tokenizer is none of the model's {size}; give its own tokenizer"
        )
    return {"input_ids": ids, "attention_mask": encoded["attention_mask"]}


def _write(generator: Any, tokenizer: Any, prompt: str, options: argparse.Namespace) -> None:
    import torch
    from transformers import TextStreamer

    inputs = _encoded(tokenizer, prompt, generator.config)
    settings: dict[str, Any] = {"max_new_tokens": options.max_new_tokens, "do_sample": options.temperature > 0}
    if options.temperature > 0:
        settings["temperature"] = options.temperature
    if options.prompt_lookup:
        settings["prompt_lookup_num_tokens"] = options.prompt_lookup
    if generator.generation_config.pad_token_id is None:
        settings["pad_token_id"] = tokenizer.pad_token_id or tokenizer.eos_token_id
    if not generator.reads_source:
        # What is written of a source is a text of its own.
        print(prompt, end="", flush=True)
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    # It takes what it is told first for the prompt: of a decoder beside an encoder the token that it begins with.
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    tokens = generator.generate(**inputs, **settings, streamer=streamer)
    # A decoder beside an encoder begins with a token of its own.
    begun = 1 if generator.reads_source else inputs["input_ids"].shape[1]
    seconds, new = time.perf_counter() - started, tokens.shape[1] - begun
    print(flush=True)
    say(f"generate: {new} tokens in {format_seconds(seconds)}, {new / seconds:.1f} tokens/s, by {generator}")

"""The command line: ``python -m cpuinfer_helpers compare``."""

from __future__ import annotations

import argparse
from typing import Any

from cpuinfer_helpers.commands.shared import exit_code, names_of
from cpuinfer_helpers.compare.compare import choose_recipes, choose_threads, compare
from cpuinfer_helpers.compare.result import check_price
from cpuinfer_helpers.compare.scores import calibration_of, score_recipes
from cpuinfer_helpers.tasks import Task, load_task, task_names

_FAST_BUDGET_S = 2.0
_FAST_EXAMPLES = 16
_FAST_TURNS = 2
_BUDGET_S = 10.0
_TEXTS, _NEW_TOKENS = "text-generation", 32
# Rows on which labels are compared, beside those that are measured.
_AGREEMENT_ROWS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of this command."""
    parser.add_argument("--task", required=True, choices=task_names(), help="what to run")
    parser.add_argument("--recipes", help="names separated by commas; all unless given")
    parser.add_argument("--batch", type=int, default=1, help="rows of a call (default 1)")
    parser.add_argument("--length", type=int, default=384, help="tokens of a row (default 384)")
    parser.add_argument("--new-tokens", type=int, default=_NEW_TOKENS, help=f"for {_TEXTS}: so many ({_NEW_TOKENS})")
    parser.add_argument("--threads", type=int, help="threads of each recipe; PyTorch's number unless given")
    parser.add_argument("--budget", type=float, help=f"seconds of measuring for each recipe (default {_BUDGET_S:g})")
    parser.add_argument("--price-per-hour", type=float, help="what an hour of this machine costs, for a cost column")
    parser.add_argument("--save", metavar="FILE", help="write the comparison as JSON, to compare machines")
    parser.add_argument("--fast", action="store_true", help="shorter measurements, accuracy on fewer examples")
    parser.add_argument("--no-scores", action="store_true", help="leave out the second table, the task's metric")


def run(options: argparse.Namespace) -> int:
    """Print the comparison, and then the task's metric for each recipe.

    Returns
    -------
    int
        Exit code: 0, or 2 with one line on standard error if the request cannot be carried out.
    """
    return exit_code("compare", lambda: _run(options), after_interrupt="all processes are ended")


def _run(options: argparse.Namespace) -> int:
    if options.task == _TEXTS:
        return _run_texts(options)
    recipes = names_of("--recipes", options.recipes)
    choose_recipes(recipes)
    choose_threads(options.threads)
    task = load_task(options.task)
    budget_s = options.budget if options.budget is not None else (_FAST_BUDGET_S if options.fast else _BUDGET_S)
    comparison = compare(
        task.model,
        task.inputs(options.batch, options.length),
        recipes,
        threads=options.threads,
        budget_s=budget_s,
        calibration=calibration_of(task, options.length),
        agreement_inputs=_agreement_inputs(task, options),
        price_per_hour=options.price_per_hour,
    )
    print(f"{comparison}\n{task.origin}", flush=True)
    if options.save:
        comparison.save(options.save)
    if not options.no_scores:
        limit = _FAST_EXAMPLES if options.fast else None
        print(f"\n{score_recipes(task, recipes, limit=limit, threads=options.threads)}", flush=True)
    return 0


def _run_texts(options: argparse.Namespace) -> int:
    """Text generation: times on one model, and what the trained one's answers lose."""
    from cpuinfer_helpers.generation import compare_generators
    from cpuinfer_helpers.generation.selection.compare import TURNS

    recipes = names_of("--recipes", options.recipes)
    if options.price_per_hour is not None:
        check_price(options.price_per_hour)
    task = load_task(options.task)
    comparison = compare_generators(
        task.model,
        task.inputs(options.batch, options.length),
        recipes,
        new_tokens=options.new_tokens,
        turns=_FAST_TURNS if options.fast else TURNS,
        threads=options.threads,
    )
    print(f"{comparison}\n{task.origin}", flush=True)
    if options.price_per_hour is not None:
        print(f"\n{comparison.cost(options.price_per_hour)}", flush=True)
    if options.save:
        comparison.save(options.save)
    if not options.no_scores:
        prompts, held_out = task.inputs(2, 32, tokens=[32, 20]), task.running_text()
        trained = compare_generators(
            task.trained_model, prompts, recipes, turns=1, threads=options.threads, held_out=held_out
        )
        print(f"\n{trained.answers()}", flush=True)
    return 0


def _agreement_inputs(task: Task, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Other rows of the task's data, one at a time."""
    rows = task.inputs(options.batch + _AGREEMENT_ROWS, options.length)
    return [
        {name: tensor[number : number + 1] for name, tensor in rows.items()}
        for number in range(options.batch, options.batch + _AGREEMENT_ROWS)
    ]

"""A recipe of text generation in its process: prepared, asked for a first text, and timed in turns with others."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cpuinfer_helpers.generation.measuring import GenerationTiming, Turn, size_of
from cpuinfer_helpers.generation.selection.result import GenerationResult
from cpuinfer_helpers.processes.child import Child, ChildLost
from cpuinfer_helpers.processes.session import Session
from cpuinfer_helpers.processes.status import SUCCESSFUL, Kind, Status, failure
from cpuinfer_helpers.receipts import Receipt
from cpuinfer_helpers.recipes import Recipe
from cpuinfer_helpers.recipes.registry import REFERENCE
from cpuinfer_helpers.saving.plain import read

_QUESTIONS = "cpuinfer_helpers.generation.selection.in_child"


@dataclass
class Candidate:
    """A recipe that is prepared and waits in its process for its turns; or one that failed, see its row."""

    child: Child
    row: GenerationResult
    tokens: torch.Tensor | None = None
    first: Turn | None = None
    bytes_read: int = 0
    turns: list[Turn] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The recipe's."""
        return self.row.recipe

    @property
    def fastest_s(self) -> float:
        """Seconds of the fastest text so far: what else runs on the machine can only slow one down."""
        return min(turn.seconds for turn in (self.first, *self.turns) if turn is not None)


@dataclass
class GenerationBench:
    """Prepares recipes in the processes of one session, and has them write.

    Attributes
    ----------
    session
        Starts the processes and asks them.
    prompts
        What is continued.
    new_tokens
        By how many tokens.
    tolerance
        Largest relative error of one token's logits; None for that of each precision.
    on_stage
        Told what is being done.
    """

    session: Session
    prompts: Mapping[str, torch.Tensor]
    new_tokens: int
    tolerance: float | None
    on_stage: Callable[[str], None]
    bandwidth: float | None = None

    def begin(self, recipe: Recipe, *, verify: bool) -> Candidate:
        """Start a process, prepare the model in it, and have it write for the first time.

        Raises
        ------
        ChildLost
            If the process ends.
        """
        self.on_stage(f"{recipe.name}: starting")
        child, load_s = self.session.start(recipe)
        row = new_row(recipe, SUCCESSFUL, load_s=load_s)
        self.on_stage(f"{recipe.name}: preparing")
        # Against itself the reference has nothing to prove.
        verify = verify and recipe.name != REFERENCE
        options = {"new_tokens": self.new_tokens, "verify": verify, "tolerance": self.tolerance}
        done = self._ask(child, "prepare_here", watched=True, **options)
        receipt = read(Receipt, done["receipt"], "receipt", older=True)
        row = replace(row, prepare_s=receipt.prepare_seconds, receipt=receipt, runs=receipt.runs or "the eager model")
        row = replace(row, perplexity=tuple(done["perplexity"]) if done["perplexity"] else None)
        if not done["prepared"] and recipe.name != REFERENCE:
            self.session.close(child)
            return Candidate(child, replace(row, status=failure(Kind.FELL_BACK, receipt.reason)))
        self.on_stage(f"{recipe.name}: writing")
        return self._first_text(Candidate(child, row))

    def measure_bandwidth(self, candidate: Candidate) -> None:
        """See how fast memory is read, in a process that waits for its turns, with the threads of all others."""
        self.on_stage("measuring the memory")
        self.bandwidth = self._ask(candidate.child, "bandwidth_here")

    def take_turns(
        self,
        candidates: Sequence[Candidate],
        turns: int,
        *,
        until: Callable[[int], bool] = lambda turn: False,
    ) -> dict[str, Status]:
        """Have each candidate write one whole text a turn, in rotating order, while the others are idle.

        Parameters
        ----------
        candidates
            Those that write; what they write is added to their turns.
        turns
            How often each does.
        until
            Asked before each turn but the first ones whether to stop, with the number of turns so far.

        Returns
        -------
        dict of str to Status
            Of those that were lost on the way, by name, what became of them.
        """
        lost: dict[str, Status] = {}
        for number in range(turns):
            if until(number):
                break
            self.on_stage(f"{_names(candidates)}: text {number + 1} of {turns}")
            for candidate in _rotated([one for one in candidates if one.name not in lost], number):
                try:
                    candidate.turns.append(self._write(candidate))
                except ChildLost as error:
                    lost[candidate.name] = error.status
        return lost

    def measured(self, candidates: Sequence[Candidate], group: int) -> list[GenerationResult]:
        """The rows of candidates that have taken turns together, the reference first among them."""
        round_id = uuid.uuid4().hex
        reference = self._timing(candidates[0], candidates[0], round_id)
        rows = []
        for candidate in candidates:
            timing = self._timing(candidate, candidates[0], round_id)
            row = replace(candidate.row, timing=timing, group=group)
            if candidate is not candidates[0]:
                whole, token = timing.whole.is_faster_than(reference.whole), timing.is_faster_than(reference)
                row = replace(row, speedup=whole, token_speedup=token)
            rows.append(row)
        return rows

    def close(self, candidate: Candidate) -> None:
        """End its process."""
        self.session.close(candidate.child)

    def _first_text(self, candidate: Candidate) -> Candidate:
        started = time.monotonic()
        first = self._ask(candidate.child, "first_text", watched=True)
        candidate.row = replace(
            candidate.row,
            first_text_s=time.monotonic() - started,
            resident_bytes=first["resident_bytes"],
            peak_bytes=first["peak_bytes"],
            weight_bytes=first["weight_bytes"] or None,
        )
        candidate.tokens = torch.tensor(first["tokens"])
        candidate.bytes_read = first["bytes_read"]
        candidate.first = _turn(first["turn"])
        return candidate

    def _write(self, candidate: Candidate) -> Turn:
        turn = _turn(self._ask(candidate.child, "next_text"))
        candidate.child.wait_until_idle()
        return turn

    def _ask(self, child: Child, name: str, *, watched: bool = False, **arguments: Any) -> Any:
        told = {"question": f"{_QUESTIONS}:{name}", "arguments": arguments}
        return self.session.ask(child, "answer_question", watched=watched, step=name.replace("_here", ""), **told)

    def _timing(self, candidate: Candidate, reference: Candidate, round_id: str) -> GenerationTiming:
        rows, length = size_of(self.prompts)
        same = (candidate.tokens == reference.tokens)[:, -self.new_tokens :]
        return GenerationTiming(
            label=candidate.name,
            rows=rows,
            prompt_tokens=length,
            new_tokens=self.new_tokens,
            first_call=candidate.row.first_text_s,
            turns=tuple(candidate.turns),
            bytes_read=candidate.bytes_read,
            same_tokens=int(same.sum()),
            threads=self.session.threads,
            bandwidth=self.bandwidth,
            round_id=round_id,
        )


def new_row(recipe: Recipe, status: Status, **seen: Any) -> GenerationResult:
    """A row of which nothing has been measured yet."""
    return GenerationResult(recipe.name, recipe.precision, status, emulated=recipe.emulated, **seen)


def _names(candidates: Sequence[Candidate]) -> str:
    return candidates[0].name if len(candidates) == 1 else f"{len(candidates)} recipes side by side"


def _turn(told: Mapping[str, Any]) -> Turn:
    return Turn(told["first_token"], tuple(told["tokens"]), tuple(told["step"]))


def _rotated(candidates: Sequence[Candidate], by: int) -> list[Candidate]:
    shift = by % len(candidates) if candidates else 0
    return [*candidates[shift:], *candidates[:shift]]

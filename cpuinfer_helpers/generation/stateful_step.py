"""A step over an OpenVINO model that keeps keys and values itself: a state is a request of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cpuinfer_helpers.generation.positions import masks_of
from cpuinfer_helpers.generation.stateful import IDS, LOGITS, POSITIONS, ROWS, SLOTS, WANTED, mask_name
from cpuinfer_helpers.generation.step import BLOCK, State, Step


class StatefulState(State):
    """A request, whose variables hold keys and values.

    Forgotten tokens stay there and are masked, until there are more of them than of others: to read the variables and
    to write them again takes as long as feeding a token does (GPT-2 with 500 tokens).

    Parameters
    ----------
    compiled
        The compiled model.
    batch, capacity
        See :class:`~cpuinfer_helpers.generation.step.State`.
    """

    def __init__(self, compiled: Any, batch: int, capacity: int) -> None:
        super().__init__(batch, capacity)
        self.compiled = compiled
        self.request = compiled.create_infer_request()
        # What the next tokens' rows go on with, and which columns of the variables hold the tokens.
        self.rows = torch.arange(batch, dtype=torch.int32)
        self.columns = torch.arange(0)
        self.width = 0

    def fed(self, new: int) -> None:
        """Note that the variables hold so many tokens more, in rows that are in order."""
        self.columns = torch.cat([self.columns, torch.arange(self.width, self.width + new)])
        self.width += new
        self.rows = torch.arange(self.batch, dtype=torch.int32)

    def kept(self) -> list[torch.Tensor]:
        """Keys and values of the tokens that there are, a tensor for each variable."""
        tensors = (torch.from_numpy(one.state.data) for one in self.request.query_state())
        return [kept.index_select(0, self.rows).index_select(2, self.columns) for kept in tensors]

    def write(self, kept: Sequence[torch.Tensor]) -> None:
        """Have the variables hold what :meth:`kept` has returned and nothing else.

        Parameters
        ----------
        kept
            A tensor for each variable; none to have no tokens.
        """
        import openvino

        if kept:
            for variable, tensor in zip(self.request.query_state(), kept, strict=True):
                variable.state = openvino.Tensor(tensor.numpy())
        else:
            self.request.reset_state()
        self.width = kept[0].shape[2] if kept else 0
        self.columns = torch.arange(self.width)
        self.rows = torch.arange(len(self.rows), dtype=torch.int32)

    def _crop(self, length: int) -> None:
        self.columns = self.columns[:length]
        if not length:
            self.write(())
        elif self.width - length > max(BLOCK, length):
            self.write(self.kept())

    def _reorder(self, rows: torch.Tensor) -> None:
        # Rows without tokens are those of whatever is fed next.
        self.rows = self.rows[rows] if self.width else torch.arange(len(rows), dtype=torch.int32)

    def _grow(self, capacity: int) -> None:
        """OpenVINO makes room itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> StatefulState:
        new = StatefulState(self.compiled, self.batch, self.capacity)
        memo[id(self)] = new
        if self.length:
            new.write(self.kept())
            new.length = self.length
        return new


class StatefulStep(Step):
    """Runs a compiled model of :func:`~cpuinfer_helpers.generation.stateful.convert`.

    Parameters
    ----------
    compiled
        The compiled model.
    kinds
        Kinds of attention, see :func:`~cpuinfer_helpers.generation.positions.attention_kinds`.
    lowest
        The dtype that is not to overflow where a token may not be attended to.
    limit
        The most tokens that a row may have.
    """

    def __init__(self, compiled: Any, kinds: dict[str, int | None], lowest: torch.dtype, limit: int | None) -> None:
        self.compiled, self.kinds, self.lowest, self.limit = compiled, kinds, lowest, limit
        self._ports = {name: number for number, port in enumerate(compiled.inputs) for name in port.get_names()}
        self._logits = next(n for n, port in enumerate(compiled.outputs) if LOGITS in port.get_names())

    def _new_state(self, batch: int, capacity: int) -> StatefulState:
        return StatefulState(self.compiled, batch, capacity)

    def _feed(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, state: StatefulState, last: int
    ) -> torch.Tensor:
        fed = ids.shape[1]
        tensors = {
            IDS: ids,
            POSITIONS: positions,
            SLOTS: torch.arange(state.length, state.length + fed),
            WANTED: torch.arange(fed - last, fed),
            ROWS: state.rows,
            **self._masks(mask, state),
        }
        arrays = {self._ports[name]: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()}
        # Inputs are read where they are. Outputs are copied: the next inference writes over the request's own.
        results = state.request.infer(arrays, share_inputs=True, share_outputs=False)
        state.fed(fed)
        return torch.from_numpy(results[self._logits])

    def _masks(self, mask: torch.Tensor, state: StatefulState) -> dict[str, torch.Tensor]:
        masks = [one.float() for one in masks_of(self.kinds, mask, state.length, self.lowest)]
        if state.width > state.length:
            new = torch.arange(state.width, state.width + mask.shape[1] - state.length)
            columns, lowest = torch.cat([state.columns, new]), torch.finfo(self.lowest).min
            masks = [_spread(one, columns, lowest) for one in masks]
        return {mask_name(kind): one for kind, one in zip(self.kinds, masks, strict=True)}

    def __deepcopy__(self, memo: dict[int, Any]) -> StatefulStep:
        """The same one, which calls do not change: a compiled model has no copy."""
        return self


def _spread(mask: torch.Tensor, columns: torch.Tensor, lowest: float) -> torch.Tensor:
    """A mask whose columns are put where the tokens' are; what lies between cannot be attended to."""
    spread = mask.new_full((*mask.shape[:-1], int(columns[-1]) + 1), lowest)
    return spread.index_copy_(-1, columns, mask)

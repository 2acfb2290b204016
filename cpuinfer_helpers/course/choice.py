"""Choosing a model in a notebook, by a menu or by typing."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from cpuinfer_helpers.display import Displayed, Table
from cpuinfer_helpers.errors import InputError


class TypedChoice(Displayed):
    """A choice without widgets: shows what can be chosen, and how.

    Attributes
    ----------
    options
        What is offered.
    value
        What is chosen, the first of them unless something else is assigned.
    """

    def __init__(self, options: Sequence[str]) -> None:
        self.options = tuple(options)
        self.value = self.options[0]

    def table(self) -> Table:
        """The options, with a mark at the one that is chosen."""
        offered = self.options if self.value in self.options else (*self.options, self.value)
        rows = tuple((option, "chosen" if option == self.value else "") for option in offered)
        return Table(("model", ""), rows, note="ipywidgets is not installed: assign another one to .value")


class WidgetChoice:
    """A drop-down, and a text box that goes before it."""

    def __init__(self, options: Sequence[str]) -> None:
        import ipywidgets

        wide = {"description_width": "8em"}
        layout = ipywidgets.Layout(width="40em")
        self._offered = ipywidgets.Dropdown(
            options=list(options), description="one of these", style=wide, layout=layout
        )
        self._own = ipywidgets.Text(
            placeholder="owner/name on the hub, or a folder", description="or your own", style=wide, layout=layout
        )
        self._both = ipywidgets.VBox([self._offered, self._own])

    @property
    def value(self) -> str:
        """What is in the text box, if there is anything, else what the drop-down shows."""
        return self._own.value.strip() or self._offered.value

    @value.setter
    def value(self, chosen: str) -> None:
        offered = chosen in self._offered.options
        self._own.value = "" if offered else chosen
        if offered:
            self._offered.value = chosen

    def __repr__(self) -> str:
        return f"chosen: {self.value}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        # A page without widgets shows the text.
        return {**self._both._repr_mimebundle_(), "text/plain": repr(self)}


def choose_model(options: Sequence[str]) -> TypedChoice | WidgetChoice:
    """Offer models in a notebook: a drop-down, and a text box for any other.

    Nothing waits for a click: ``value`` is the first option until somebody chooses.

    Parameters
    ----------
    options
        What the drop-down offers, the default first.

    Returns
    -------
    object
        ``value`` is the text if there is any, else the drop-down's choice; it can be assigned. Without ipywidgets the
        object shows plain text and has the same ``value``.

    Raises
    ------
    InputError
        If there are no options.
    """
    if not options or isinstance(options, str):
        raise InputError(f"options is {options!r}; give at least one name, in a list")
    return WidgetChoice(options) if find_spec("ipywidgets") else TypedChoice(options)

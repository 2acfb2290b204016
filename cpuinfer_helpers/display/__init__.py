"""How results show themselves, as text and in a notebook."""

from cpuinfer_helpers.display.charts import bar_chart, operator_columns
from cpuinfer_helpers.display.live import GrowingTable
from cpuinfer_helpers.display.table import (
    RESULT_MIME_TYPE,
    Displayed,
    Table,
    format_bytes,
    format_seconds,
    shorten,
)

__all__ = [
    "RESULT_MIME_TYPE",
    "Displayed",
    "GrowingTable",
    "Table",
    "bar_chart",
    "format_bytes",
    "format_seconds",
    "operator_columns",
    "shorten",
]

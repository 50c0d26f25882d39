"""One run, or several, as one offline HTML page."""

from isobit.report.page import write_report

__all__ = ["write_report"]

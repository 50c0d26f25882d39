"""One run, or several, as one offline HTML page."""

from isobit.report.page import check_report, write_report

__all__ = ["check_report", "write_report"]

"""What a ledger says, for people: exposure, series and forecast as data, as text, and as one page of HTML."""

from fhe_llm.privacy.reporting.page_file import html_page, write_page
from fhe_llm.privacy.reporting.report import BudgetReport, PrincipalReport, report_on
from fhe_llm.privacy.reporting.text import text_report

__all__ = ["BudgetReport", "PrincipalReport", "html_page", "report_on", "text_report", "write_page"]

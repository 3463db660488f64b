"""The report as a PDF: the same page of blocks as the HTML, on A4."""

from tacit_common.report.pdf.document import render_pdf

__all__ = ["render_pdf"]

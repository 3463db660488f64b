"""The report as a person reads it: one page of blocks, drawn as HTML and as PDF."""

from tacit_common.report.page.assemble import build_page
from tacit_common.report.page.blocks import Block, Page, Section

__all__ = ["Block", "Page", "Section", "build_page"]

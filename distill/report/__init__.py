"""The report: one self-contained HTML file that says what a run did, without a model and without a network."""

from distill.report.facts import ExportFacts, LineageRow, ModelRow, ReportFacts, gather_facts, save_rows
from distill.report.gallery import GalleryItem, load_gallery, save_gallery
from distill.report.page import write_report

__all__ = [
    "ExportFacts",
    "GalleryItem",
    "LineageRow",
    "ModelRow",
    "ReportFacts",
    "gather_facts",
    "load_gallery",
    "save_gallery",
    "save_rows",
    "write_report",
]

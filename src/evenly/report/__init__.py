"""The page and the picture of a comparison, drawn from the folder that it wrote."""

from evenly.report.page import write_report
from evenly.report.picture import figure_svg

__all__ = ["figure_svg", "write_report"]

"""The pages and the pictures of comparisons and checkups, drawn from what they wrote."""

from evenly.report.checkup import write_checkup
from evenly.report.checkup_picture import checkup_figure, write_checkup_picture
from evenly.report.comparison import Projected
from evenly.report.formats import FORMATS, write_formats
from evenly.report.history import Point, write_history
from evenly.report.page import write_report
from evenly.report.picture import write_picture, write_projection_picture
from evenly.report.studies import Drawing, figure1, figure3, figure4, figure5, scores

__all__ = [
    "FORMATS",
    "Drawing",
    "Point",
    "Projected",
    "checkup_figure",
    "figure1",
    "figure3",
    "figure4",
    "figure5",
    "scores",
    "write_checkup",
    "write_checkup_picture",
    "write_formats",
    "write_history",
    "write_picture",
    "write_projection_picture",
    "write_report",
]

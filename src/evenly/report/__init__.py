"""The page and the pictures of a comparison, drawn from the folder that it wrote."""

from evenly.report.comparison import Projected
from evenly.report.formats import FORMATS, write_formats
from evenly.report.history import Point, write_history
from evenly.report.page import write_report
from evenly.report.picture import write_picture, write_projection_picture
from evenly.report.studies import Drawing, accuracy, figure1, figure3, figure4, figure5

__all__ = [
    "FORMATS",
    "Drawing",
    "Point",
    "Projected",
    "accuracy",
    "figure1",
    "figure3",
    "figure4",
    "figure5",
    "write_formats",
    "write_history",
    "write_picture",
    "write_projection_picture",
    "write_report",
]

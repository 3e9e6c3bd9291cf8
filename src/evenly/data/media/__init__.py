"""Sound and pictures from files."""

from evenly.data.media.error import MediaError, NoStream
from evenly.data.media.sound import read_sound, resampled
from evenly.data.media.video import Frames, frames_of

__all__ = ["Frames", "MediaError", "NoStream", "frames_of", "read_sound", "resampled"]

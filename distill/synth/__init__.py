"""A procedural data set of pictures of people who look at things, written in GazeFollow's layout."""

from distill.synth.config import GENERATOR_VERSION, SynthConfig
from distill.synth.dataset import SynthSummary, write_dataset
from distill.synth.errors import SynthError
from distill.synth.scene import Drawn, DrawnHead, draw_scene

__all__ = [
    "GENERATOR_VERSION",
    "Drawn",
    "DrawnHead",
    "SynthConfig",
    "SynthError",
    "SynthSummary",
    "draw_scene",
    "write_dataset",
]

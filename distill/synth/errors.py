"""Errors of the scene generator."""


class SynthError(ValueError):
    """The scene generator was asked for something that it cannot write; the message names cause and remedy."""

    mendable = True

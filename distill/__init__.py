"""Knowledge distillation for gaze-target estimation: scenes, views, evaluation, reports and the `distill` command."""

__version__ = "0.1.0"

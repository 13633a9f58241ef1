"""``distill train``: train a student from a run file, or resume a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distill.commands.plan import add_schedule_flags
from distill.configuration import add_run_flags, load_run_config, run_overrides

EPILOG = """\
examples:
  distill train recipes/demo.toml --cache caches/scenes
  distill train recipes/gentle_finetune.toml --data gazefollow:/path --cache caches/gf --batch-size 32 --use-amp
  distill train recipes/own_camera.toml --student runs/demo --cache caches/scenes --unlabelled caches/photos
  distill train --resume runs/demo
  distill train RUN.toml --cache caches/gf --on-spike hold --ema-decay 0.999 --patience 5
  distill train RUN.toml --cache caches/gf --grad-checkpointing --accumulate 4        when opened blocks run out of memory
  WANDB_MODE=offline distill train RUN.toml --cache caches/gf --tracker wandb,tensorboard
  accelerate launch -m distill train RUN.toml                                         one process per GPU
  ACCELERATE_USE_CPU=1 torchrun --nproc-per-node 2 -m distill train RUN.toml          several processes on a CPU
"""


def register(subparsers: Any) -> None:
    """Add the ``train`` command to the parser's subcommands."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "train",
        help="train a student, with or without a teacher's cache",
        description="Train a student by a run file (TOML); every key of it is an option here too, and options win. The run is "
        "written to runs/NAME: configuration, plan, metrics.jsonl, checkpoints and the best student.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", type=Path, metavar="RUN.toml", help="a run file; recipes/ holds examples")
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="go on with a run from its newest intact checkpoint")
    parser.add_argument("--override", action="store_true", help="on --resume: options win over what the run was started with")
    parser.add_argument("--epochs", type=int, metavar="N", default=argparse.SUPPRESS, help="length of the run")
    add_run_flags(parser)
    add_schedule_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train; raises mendable errors for what cannot be trained."""
    from distill.console import print_result
    from distill.errors import ConfigurationError
    from distill.training import Run

    overrides = run_overrides(options)
    if options.resume is not None:
        if options.recipe is not None:
            raise ConfigurationError("--resume goes on with a run's own configuration; leave the run file out")
        training = Run(resumed_config(options.resume, overrides, override=options.override), resuming=True)
        end = training.resume()
    else:
        training = Run(load_run_config(options.recipe, overrides))
        end = training.start()
    value = "n/a" if end["best"] is None else f"{end['best']:.4f}"
    print_result(f"best {end['metric']} {value} at step {end['best_step']}; student in {training.path / 'student'}")
    return 0


def resumed_config(run_dir: Path, overrides: dict[str, Any], *, override: bool) -> Any:
    """The configuration a run was started with; where the command line differs it is warned about, value by value.

    With ``override`` the command line wins. Prolonging a run keeps the length that its rates were planned for.
    """
    import json
    from dataclasses import replace

    from distill.configuration import config_from_sections
    from distill.console import warn
    from students.errors import RunError

    path = run_dir / "config.json"
    try:
        sections = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{run_dir} holds no run to resume (no {path.name}); {_runs_nearby(run_dir)}") from None
    except NotADirectoryError:
        raise RunError(f"--resume takes the directory of a run, and {run_dir} is a file; {_runs_nearby(run_dir)}") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); mend that, or give the directory of another run") from None
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}); start the run again under another --name") from None
    if not isinstance(sections, dict) or not isinstance(sections.get("run"), dict):
        raise RunError(f"{path} is no configuration of a run (it has no section run); restore it, or start the run again under another --name")
    sections.pop("facts", None)
    # The directory may have been moved since: its place is where it is found.
    sections["run"]["name"], sections["run"]["runs"] = run_dir.resolve().name, str(run_dir.resolve().parent)
    saved = config_from_sections(sections, str(path))
    wanted = saved.to_json()
    plan = saved.plan_config(1).to_dict()
    for name, value in overrides.items():
        section = next((s for s, entries in wanted.items() if name in entries), "schedule")
        before = wanted[section].get(name)
        if section == "schedule":
            # Values may be spelt differently (0.3 and "0.3", 5 and "5 epochs") or left to their defaults: compare what is meant.
            asked = replace(saved, schedule={**saved.schedule, name: value}).plan_config(1).to_dict()
            before = plan[name]
            if asked[name] == before:
                continue
        elif before == value:
            continue
        if not override:
            warn(f"--{name.replace('_', '-')} {value} differs from the run's own {before}, which is kept; --override makes {value} win")
            continue
        warn(f"--{name.replace('_', '-')} {value} takes the place of the run's own {before}")
        if name == "epochs" and before is not None:
            wanted["schedule"].setdefault("planned_epochs", before)
        wanted[section][name] = value
    return config_from_sections(wanted, str(path))


def _runs_nearby(place: Path) -> str:
    """The run that somebody who names another place may have meant: one above it, or those below it or below ``runs``."""
    above = next((folder for folder in place.parents if (folder / "config.json").is_file()), None)
    if above is not None:
        return f"its run is `--resume {above}`, which goes on from the newest checkpoint that is intact"
    for folder in (place, Path("runs")):
        found = sorted(str(file.parent) for file in folder.glob("*/config.json"))
        if found:
            return f"give the directory of a run, such as {', '.join(found[:3])}"
    return "give the directory of a run (runs/NAME), or start one with `distill train RUN.toml`"

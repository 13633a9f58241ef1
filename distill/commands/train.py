"""``distill train``: train a student from a run file, or resume a run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distill.commands.plan import add_schedule_flags
from distill.configuration import add_run_flags, load_run_config, read_run_file, run_overrides

EPILOG = """\
examples:
  distill train recipes/demo.toml --cache caches/scenes
  distill train recipes/gentle_finetune.toml --data gazefollow:/path --cache caches/gf --batch-size 32 --use-amp
  distill train recipes/own_camera.toml --student runs/demo --cache caches/scenes --unlabelled caches/photos
  distill train --resume runs/demo
  distill train --resume                                                              the newest run below runs/
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
    parser.add_argument(
        "--resume", type=Path, nargs="?", const=True, metavar="RUN_DIR", help="go on with a run from its newest intact checkpoint; without "
        "RUN_DIR with the run of the run file or --name, else with the newest below --runs"
    )
    parser.add_argument("--override", action="store_true", help="on --resume: options win over what the run was started with")
    parser.add_argument("--epochs", type=int, metavar="N", default=argparse.SUPPRESS, help="length of the run")
    add_run_flags(parser)
    add_schedule_flags(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Train; raises mendable errors for what cannot be trained."""
    from distill.console import print_result
    from distill.training import Run

    overrides = run_overrides(options)
    if options.resume is not None:
        run_dir, asked = options.resume, {**_file_values(options.recipe), **overrides}
        if run_dir is True:  # no RUN_DIR: these two have said which run is meant, and ask for nothing else
            run_dir, asked = _run_to_resume(options.recipe, overrides), {key: asked[key] for key in asked if key not in ("name", "runs")}
        training = Run(resumed_config(run_dir, asked, override=options.override), resuming=True)
        end = training.resume()
    else:
        training = Run(load_run_config(options.recipe, overrides))
        end = training.start()
    value = "n/a" if end["best"] is None else f"{end['best']:.4f}"
    print_result(f"best {end['metric']} {value} at step {end['best_step']}; student in {training.path / 'student'}")
    return 0


def _file_values(recipe: Path | None) -> dict[str, Any]:
    """What a run file that is given beside ``--resume`` asks for, by field name; the run's name and place are those of the run."""
    sections = {} if recipe is None else read_run_file(recipe)
    return {name: value for entries in sections.values() for name, value in entries.items() if name not in ("name", "runs")}


def _run_to_resume(recipe: Path | None, overrides: dict[str, Any]) -> Path:
    """The run that ``--resume`` alone means: that of the run file or the name, else the one that wrote a checkpoint last."""
    from distill.console import say
    from distill.training import run_directory
    from students.checkpoint import checkpoints
    from students.errors import RunError

    config = load_run_config(recipe, overrides)
    if config.name:
        return run_directory(config)
    found = [file.parent for file in Path(config.runs).glob("*/config.json")]
    if not found:
        raise RunError(f"--resume: no run is below {config.runs}; {_runs_nearby(Path(config.runs))}")
    latest = max(found, key=lambda run: (max(path.stat().st_mtime_ns for path in [run / "config.json", *checkpoints(run)]), run))
    say(f"resuming {latest}" + (f", the newest of {len(found)} runs below {config.runs}" if found[1:] else ""))
    return latest


def resumed_config(run_dir: Path, overrides: dict[str, Any], *, override: bool) -> Any:
    """The configuration a run was started with; where the command line differs it is warned about, value by value.

    Another student is refused. With ``override`` the command line wins. Prolonging a run keeps the length that its rates were planned for.
    Where a run stops early is asked anew each time: a limit that was reached has done its work, and one that is given holds.
    """
    import json
    from dataclasses import replace

    from distill.configuration import config_from_sections
    from distill.console import warn
    from students.checkpoint import newest_step
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
    if "limit_steps" not in overrides and 0 < saved.limit_steps <= newest_step(run_dir):
        warn(f"the run had stopped at its --limit-steps {saved.limit_steps}; now it goes on to its end")
        wanted["train"]["limit_steps"] = 0
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
        if name == "student" and not override:
            raise RunError(f"--student is {value}, and {run_dir} is a run of {before}; leave --student out, or start a run of its own under another --name")
        if not override and name != "limit_steps":
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

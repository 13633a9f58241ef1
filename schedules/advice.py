"""What a plan says about itself, and the advice of the progressive-unfreezing guide for what may happen in a run."""

from dataclasses import fields

from schedules.clock import ThawClock, needed_epochs
from schedules.config import PlanConfig

OUT_OF_MEMORY = (
    "out of memory after unfreezing: the backbone may exceed memory once gradients flow through deeper layers; reduce "
    "the batch size, enable mixed precision (--use-amp), or slow the cadence (a longer --unfreeze-interval)"
)
OUT_OF_MEMORY_FROZEN = (
    "out of memory with a frozen backbone: reduce the batch size (or raise --accumulate), or enable mixed precision (--use-amp)"
)
SPIKE = (
    "the loss rose sharply after a thaw: the schedule may be too aggressive; lower --backbone-lr (10x smaller than "
    "the head's rate), or lengthen --unfreeze-interval"
)
REGRESSION = (
    "training regressed after the full unfreeze: cap the number of blocks (--finetune-layers with "
    "--disable-progressive-unfreeze), or unfreeze progressively over a longer schedule (longer "
    "--initial-freeze-epochs and --unfreeze-interval)"
)


def plan_messages(clock: ThawClock) -> list[str]:
    """What the schedule will do, in the guide's words."""
    config, blocks = clock.config, clock.blocks
    if not config.finetune:
        return ["The backbone stays frozen (--finetune opens it)."]
    if config.finetune_layers <= 0:
        return [f"All {blocks} blocks and the stem are open from the start."]
    opened = min(blocks, config.finetune_layers)
    if opened == blocks:
        return [
            f"--finetune-layers {config.finetune_layers} covers all {blocks} blocks: they and the stem are open from "
            "the start."
        ]
    if config.disable_progressive_unfreeze:
        return [
            f"Progressive unfreeze disabled: the last {count(opened, 'block')} of {blocks} stay open for the whole run."
        ]
    messages = [
        f"Progressive unfreeze scheduled after {count(clock.hold, 'epoch')}, adding one block every "
        f"{count(clock.interval, 'epoch')}."
    ]
    final = clock.final_epoch
    if final is not None:
        messages.append(
            f"All {blocks} blocks and the stem are expected to be unfrozen at epoch {final} (epochs count from 0)."
        )
    if clock.holds:
        epochs = ", ".join(str(epoch) for epoch in clock.holds)
        messages.append(f"Held after a spike in epoch {epochs} (--on-spike hold): what was still closed opens one interval later each time.")
    heaviest = max(config.weight_curve.levels())
    if heaviest > 0 and config.thaw_coupling > 0:
        slowest = 1 + config.thaw_coupling * heaviest
        messages.append(
            f"The distillation weight (up to {heaviest:g}, coupling {config.thaw_coupling:g}) slows the thaw clock up "
            f"to {slowest:g} times: holds and intervals are counted in thaw time."
        )
    elif heaviest > 0:
        messages.append(
            "With --thaw-coupling 0 the distillation weight does not slow the thaw; with large weights keep "
            "--unfreeze-interval longer, so that the student can align with the teacher before more of it opens."
        )
    return messages


def plan_warnings(clock: ThawClock) -> list[str]:
    """Where the schedule will not do what its values ask for, with the remedy."""
    config = clock.config
    warnings = []
    if not config.finetune:
        names = (
            "finetune_layers",
            "initial_freeze_epochs",
            "unfreeze_interval",
            "disable_progressive_unfreeze",
            "backbone_lr",
        )
        defaults = {field.name: field.default for field in fields(PlanConfig)}
        given = ["--" + name.replace("_", "-") for name in names if getattr(config, name) != defaults[name]]
        if given:
            warnings.append(f"Nothing is being unfrozen: {', '.join(given)} given without --finetune; add --finetune.")
        return warnings
    if config.backbone_rate > config.lr:
        warnings.append(
            f"The backbone's learning rate {config.backbone_rate:g} is above the head's {config.lr:g}; consider "
            f"lowering --backbone-lr to {config.lr / 10:g} (10x smaller than the head's)."
        )
    if config.progressive and clock.blocks > config.finetune_layers:
        warnings += _late_warnings(clock)
    return warnings


def _late_warnings(clock: ThawClock) -> list[str]:
    config = clock.config
    first, final = clock.opening_epochs[config.finetune_layers], clock.final_epoch
    if final is not None and final < config.epochs:
        return []
    needed = needed_epochs(config, clock.blocks)
    remedy = "lower --initial-freeze-epochs or --unfreeze-interval, or solve for it with --thaw-by"
    if needed is not None:
        remedy = f"{needed} epochs would be needed: raise --epochs to {needed}, or {remedy}"
    late = "never" if final is None else f"at epoch {final} only"
    texts = [
        f"The last stage opens {late}, beyond this run of {count(config.epochs, 'epoch')} (epochs count from 0); "
        f"{remedy}."
    ]
    if first is None or first >= config.epochs:
        until = "for good" if first is None else f"until epoch {first}"
        texts.append(
            f"Nothing is being unfrozen beyond the first {count(config.finetune_layers, 'block')}: the hold lasts "
            f"{until}; make sure that --epochs exceeds --initial-freeze-epochs (in thaw time)."
        )
    return texts


def count(number: float, noun: str) -> str:
    """`1 epoch`, `2.5 epochs`."""
    return f"{number:.6g} {noun}" if number == 1 else f"{number:.6g} {noun}s"

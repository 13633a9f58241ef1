"""Optimizer groups per stage, their learning rates, and optimizer state keyed by parameter name.

Every stage has its groups from step 0, open or not, so the optimizer never changes shape and a checkpoint loads on
either side of any thaw. A closed stage has no gradients; AdamW and SGD pass over it and keep no state for it.
"""

from typing import Any, Literal

import torch
from torch import nn

from schedules.errors import OptimizerStateError, StageError
from schedules.plan import PlanPoint
from schedules.stages import Stages

# Learned tables that stand for positions or extra tokens; decaying them pulls them towards nothing meaningful (timm's
# no_weight_decay).
_TABLES = ("token", "tokens", "pos_embed", "position_embedding", "position_embeddings", "bias_table")


def parameter_groups(
    model: nn.Module, stages: Stages, backbone_prefix: str, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for an optimizer: the head's, then each stage's in opening order, decayed before undecayed, none empty.

    `backbone_prefix` is where the backbone that `stages` was cut from lies in `model`: `"backbone"` or `"backbone."`,
    or `""` if the stages' names are the model's own. Norms, biases and other vectors, tokens and position embeddings
    are undecayed. Each group has `name`, `stage` (-1 for the head), `params`, `param_names` (names in `model`),
    `weight_decay`, and `lr` 0.0 until `set_learning_rates` is called. Raises StageError for a backbone parameter in no
    stage, or one in a stage but not in the model.
    """
    prefix = f"{backbone_prefix.rstrip('.')}." if backbone_prefix else ""
    staged = {prefix + name: index for index, stage in enumerate(stages) for name in stage.parameters}
    members: dict[tuple[int, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        stage = staged.pop(name, None)
        if stage is None:
            if prefix and name.startswith(prefix):
                raise StageError(f"backbone parameter {name!r} is in no stage; rebuild the stages from this model")
            stage = -1
        members.setdefault((stage, _undecayed(name, parameter)), []).append((name, parameter))
    if staged:
        raise StageError(
            f"the stages name {', '.join(sorted(staged)[:8])}, which the model lacks; rebuild the stages from this "
            "model"
        )
    groups = []
    for stage, undecayed in sorted(members):
        label = "head" if stage < 0 else stages[stage].name
        named = members[stage, undecayed]
        groups.append(
            {
                "name": f"{label} {'undecayed' if undecayed else 'decayed'}",
                "stage": stage,
                "params": [parameter for _, parameter in named],
                "param_names": [name for name, _ in named],
                "weight_decay": 0.0 if undecayed else weight_decay,
                "lr": 0.0,
            }
        )
    return groups


def _undecayed(name: str, parameter: torch.Tensor) -> bool:
    leaf = name.rpartition(".")[2]
    return parameter.ndim <= 1 or leaf == "bias" or leaf.endswith(_TABLES)


def build_optimizer(
    groups: list[dict[str, Any]], kind: Literal["adamw", "sgd"] = "adamw", momentum: float = 0.9
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), or SGD with `momentum`, over the groups of `parameter_groups`.

    Their rates are 0.0 until `set_learning_rates` is called. SGD's weight decay is coupled: part of the gradient.
    """
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum)
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999))


def set_learning_rates(optimizer: torch.optim.Optimizer, point: PlanPoint) -> None:
    """Give every group of `parameter_groups` the rate that the plan has for its stage at this step."""
    for group in optimizer.param_groups:
        stage = group["stage"]
        if stage >= len(point.lr_stages):
            raise StageError(
                f"the optimizer has stage {stage} but the plan only {len(point.lr_stages)}; compile it for this "
                "backbone's blocks"
            )
        rate = point.lr_head if stage < 0 else point.lr_stages[stage]
        if isinstance(group["lr"], torch.Tensor):  # a capturable optimizer keeps its rate on the device
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _named(optimizer: torch.optim.Optimizer) -> dict[str, nn.Parameter]:
    named: dict[str, nn.Parameter] = {}
    for group in optimizer.param_groups:
        named.update(zip(group["param_names"], group["params"], strict=True))
    return named


def optimizer_state_by_name(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor | float]]:
    """A copy of the state of every parameter that has any, by parameter name; stages that never opened are absent."""
    state: dict[str, dict[str, torch.Tensor | float]] = {}
    for name, parameter in _named(optimizer).items():
        entries = optimizer.state.get(parameter)
        if entries:
            state[name] = {
                key: value.detach().clone() if isinstance(value, torch.Tensor) else value
                for key, value in entries.items()
            }
    return state


def load_optimizer_state_by_name(
    optimizer: torch.optim.Optimizer, state: dict[str, dict[str, torch.Tensor | float]]
) -> None:
    """Put back what `optimizer_state_by_name` gave; parameters that `state` does not name end up with none.

    Raises OptimizerStateError, before anything is changed, for a name that the optimizer lacks or a tensor of another
    shape.
    """
    named = _named(optimizer)
    if unknown := sorted(set(state) - set(named)):
        raise OptimizerStateError(
            f"the saved optimizer state names {', '.join(unknown[:8])}{' ...' if len(unknown) > 8 else ''}, which "
            "this model lacks; resume with the student that the checkpoint was written by"
        )
    for name, entries in state.items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape != named[name].shape:
                raise OptimizerStateError(
                    f"the saved optimizer state has {key} of shape {tuple(value.shape)} for {name}, the model has "
                    f"{tuple(named[name].shape)}; resume with the student that the checkpoint was written by"
                )
    optimizer.state.clear()
    on_device = {
        id(parameter): bool(group.get("capturable") or group.get("fused"))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, entries in state.items():
        parameter = named[name]
        optimizer.state[parameter] = {
            key: _placed(key, value, parameter, on_device[id(parameter)]) for key, value in entries.items()
        }


def _placed(
    key: str, value: torch.Tensor | float, parameter: torch.Tensor, step_on_device: bool
) -> torch.Tensor | float:
    """A copy where the optimizer expects it: torch keeps `step` on the CPU unless it is capturable or fused."""
    if not isinstance(value, torch.Tensor):
        return value
    if key == "step":
        return value.detach().clone().to(parameter.device if step_on_device else "cpu")
    return value.detach().clone().to(device=parameter.device)

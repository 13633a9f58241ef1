"""Stages: the ordered groups of a backbone's parameters that are opened together.

`discover_stages` reads a backbone's module tree. Its trunk is the shallowest module with children named like a series
of blocks (`blocks`, `stages`, `layers`, `layer1`, `stages_0`, ...); below those the finest composite pieces are the
blocks: a transformer block, an inverted residual, a ConvNeXt, HGNet or residual block. What lies before the first
block is the stem (patch embedding, tokens, position embedding, a CNN's stem), what lies between blocks (down-sampling)
goes with the block after it, what follows the last block (final norm or convolution) with the last block. Modules are
taken in the order of registration, which in timm is the order of execution.

A closed stage is frozen: no gradient, and in eval mode, so that BatchNorm statistics, dropout and drop-path do not
move.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from schedules.errors import StageError

_SERIES = re.compile(r"^(?:(?:blocks?|stages?|layers?|levels?|features)(?:_?\d+)?|s\d+)$")
_PLAIN = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Stage:
    """A group that is opened together. Names are relative to the model that `discover_stages` was given."""

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    """Modules whose train or eval mode follows this stage, each in exactly one; `""` is the model itself."""
    counted: bool
    """True for a block, False for the stem."""


@dataclass(frozen=True)
class Stages:
    """A backbone's stages in opening order: the last block first, the stem last (it may hold no parameters)."""

    stages: tuple[Stage, ...]

    @property
    def blocks(self) -> int:
        """Counted stages: all but the stem."""
        return sum(stage.counted for stage in self.stages)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, stage in enumerate(self.stages) for name in stage.parameters}

    def of(self, parameter_name: str) -> int:
        """Index, in opening order, of the stage that holds a parameter. Raises StageError for an unknown name."""
        try:
            return self._index[parameter_name]
        except KeyError:
            raise StageError(
                f"parameter {parameter_name!r} is in no stage of this backbone; rebuild the stages from the model"
            ) from None

    def __len__(self) -> int:
        return len(self.stages)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)

    def __getitem__(self, index: int) -> Stage:
        return self.stages[index]

    def is_open(self, index: int, open_blocks: int, stem_open: bool) -> bool:
        """Whether the stage at `index` is open when `open_blocks` blocks are, and the stem is or is not."""
        return index < open_blocks if self.stages[index].counted else stem_open

    def apply(self, backbone: nn.Module, open_blocks: int, stem_open: bool) -> None:
        """Open the first `open_blocks` stages, and the stem or not; freeze the rest.

        An open stage requires gradients and is in train mode; a closed one requires none, holds none and is in eval
        mode. Call it again after every `model.train()`. Raises StageError if the stages are not those of `backbone`,
        ValueError for a bad count.
        """
        if not 0 <= open_blocks <= self.blocks:
            raise ValueError(f"open_blocks must be between 0 and {self.blocks}, got {open_blocks}")
        parameters, modules = dict(backbone.named_parameters()), dict(backbone.named_modules())
        if absent := sorted(set(self._index) - set(parameters)):
            raise StageError(
                f"the backbone lacks {_some(absent)}, which its stages name; rebuild the stages from this model"
            )
        for index, stage in enumerate(self.stages):
            opened = self.is_open(index, open_blocks, stem_open)
            for name in stage.parameters:
                parameters[name].requires_grad_(opened)
                if not opened:
                    # A gradient left from before would still move the parameter at the optimizer's next step.
                    parameters[name].grad = None
            for name in stage.modules:
                # Not .train(): that would also reach the children, which may belong to other stages.
                modules[name].training = opened


def discover_stages(backbone: nn.Module, prefix: str = "") -> Stages:
    """Cut a backbone into stages; every parameter is in exactly one.

    With `prefix` (`"backbone"` or `"backbone."`) only that submodule of the model is looked at, and the names carry
    the prefix. Only parameters that the forward pass uses should be there: cut unused heads and blocks off first.
    Raises StageError if the backbone has no parameters, no blocks, or a parameter that falls in no stage.
    """
    prefix = f"{prefix.rstrip('.')}." if prefix else ""
    root = backbone.get_submodule(prefix.rstrip(".")) if prefix else backbone
    kind = type(root).__name__
    if not _trained(root):
        raise StageError(f"backbone {kind} has no parameters, so it yields no stages; choose another backbone")
    trunk_path, trunk = _trunk(root)
    pieces = _pieces(trunk, trunk_path, _Order())
    if not any(piece.block for piece in pieces):
        raise StageError(
            f"backbone {kind} yields no stages: no blocks found below '{trunk_path or kind}'; choose another backbone"
        )
    owner = _owners(pieces)
    names = [piece.path for piece in pieces if piece.block]
    return _build(root, prefix, owner, names, trunk_path)


@dataclass(frozen=True)
class _Piece:
    path: str
    block: bool


class _Order:
    """Which modules have been taken, so that a module registered twice is taken once."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def first(self, module: nn.Module) -> bool:
        new = id(module) not in self.seen
        self.seen.add(id(module))
        return new


def _trained(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _trunk(root: nn.Module) -> tuple[str, nn.Module]:
    """The shallowest module that has a series of blocks among its children and holds at least half of the parameters.

    The half keeps a `layers` deep inside some part from being taken for the trunk.
    """
    level, half = [("", root)], _size(root) / 2
    while level:
        for path, module in level:
            series = any(_SERIES.match(name) and _trained(child) for name, child in module.named_children())
            if series and _size(module) >= half:
                return path, module
        level = [(_join(path, name), child) for path, module in level for name, child in module.named_children()]
    raise StageError(
        f"backbone {type(root).__name__} yields no stages: no child is named like a series of blocks (blocks, stages, "
        f"layers, layer1, ...); its children are {_some([name for name, _ in root.named_children()])}; choose another "
        "backbone"
    )


def _pieces(trunk: nn.Module, path: str, order: _Order) -> list[_Piece]:
    """The trunk's children in order, the series among them cut into blocks."""
    pieces: list[_Piece] = []
    for name, child in trunk.named_children():
        here = _join(path, name)
        if _SERIES.match(name) and _trained(child):
            pieces += _blocks(child, here, order)
        elif order.first(child):
            pieces.append(_Piece(here, block=False))
    return pieces


def _blocks(module: nn.Module, path: str, order: _Order) -> list[_Piece]:
    """A series, or an element of one, as its finest useful pieces."""
    if not order.first(module):
        return []
    if not _trained(module):
        return [_Piece(path, block=False)]
    children = list(module.named_children())
    if type(module) in _PLAIN:
        # A bare series of convolution, norm and activation is one block, and single layers among composite ones are
        # none: to open a norm without its convolution serves nobody.
        if not any(_composite(child) for _, child in children):
            return [_Piece(path, block=True)]
        return [p for name, child in children for p in _elements(child, _join(path, name), order)]
    if any(name == "blocks" and _trained(child) for name, child in children):
        pieces: list[_Piece] = []
        for name, child in children:
            pieces += (
                _blocks(child, _join(path, name), order)
                if name == "blocks"
                else [_Piece(_join(path, name), block=False)]
            )
        return pieces
    if type(module).__name__.endswith("Stage") and any(_composite(child) for _, child in children):
        return [p for name, child in children for p in _elements(child, _join(path, name), order)]
    return [_Piece(path, block=True)]


def _composite(module: nn.Module) -> bool:
    return any(_trained(child) for child in module.children())


def _elements(child: nn.Module, path: str, order: _Order) -> list[_Piece]:
    return _blocks(child, path, order) if _composite(child) else [_Piece(path, block=False)]


def _owners(pieces: list[_Piece]) -> dict[str, int]:
    """Path to stage index in opening order: before the first block the stem, between blocks the one that follows."""
    blocks = sum(piece.block for piece in pieces)
    owner: dict[str, int] = {}
    met = 0
    for piece in pieces:
        if piece.block:
            met += 1
            owner[piece.path] = blocks - met
        else:
            owner[piece.path] = blocks if met == 0 else max(blocks - met - 1, 0)
    return owner


def _build(root: nn.Module, prefix: str, owner: dict[str, int], names: list[str], trunk_path: str) -> Stages:
    count = len(names)
    _adopt_siblings(root, owner, trunk_path, count)

    def own(path: str) -> int | None:
        """The stage of the nearest ancestor-or-self with an owner."""
        while path:
            if path in owner:
                return owner[path]
            path = path.rpartition(".")[0]
        return None

    # What spans several stages (the root, a series, a stage of blocks) follows the last of them to open, so that
    # nothing of it moves before; a parameter directly on it likewise: tokens and position embeddings of the trunk go
    # with the stem.
    spanning: dict[str, int] = {}
    for path in owner:
        above = path
        while above:
            above = above.rpartition(".")[0]
            spanning[above] = max(spanning.get(above, 0), owner[path])
    for above in list(spanning):
        if above == trunk_path or trunk_path.startswith(f"{above}.") or not above:
            spanning[above] = count

    parameters: list[list[str]] = [[] for _ in range(count + 1)]
    modules: list[list[str]] = [[] for _ in range(count + 1)]
    lost: list[str] = []
    for path, _ in root.named_modules():
        found = own(path)
        stage = spanning.get(path) if found is None else found
        if stage is None:
            lost.append(path)
        else:
            modules[stage].append(prefix + path if path else prefix.rstrip("."))
    for name, _ in root.named_parameters():
        holder = name.rpartition(".")[0]
        found = own(holder)
        stage = spanning.get(holder) if found is None else found
        if stage is None:
            lost.append(name)
        else:
            parameters[stage].append(prefix + name)
    if lost:
        raise StageError(f"backbone {type(root).__name__}: no stage holds {_some(lost)}; choose another backbone")
    labels = [prefix + path for path in reversed(names)]
    stages = [Stage(labels[i], tuple(parameters[i]), tuple(modules[i]), True) for i in range(count)]
    stages.append(Stage(f"{prefix}stem", tuple(parameters[count]), tuple(modules[count]), False))
    return Stages(tuple(stages))


def _adopt_siblings(root: nn.Module, owner: dict[str, int], trunk_path: str, count: int) -> None:
    """Modules beside the trunk or its ancestors: the stem if registered before it, else with the last block."""
    above, module = "", root
    for step in trunk_path.split(".") if trunk_path else []:
        passed = False
        for name, _ in module.named_children():
            if name == step:
                passed = True
            else:
                owner.setdefault(_join(above, name), 0 if passed else count)
        above, module = _join(above, step), module.get_submodule(step)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown or "none"

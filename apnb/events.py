"""What happens while a recipe is carried out: small immutable records that a widget, a terminal, a file and a test all read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Event:
    """``step`` of ``of`` in ``stage``; ``metrics`` are numbers (shares in [0, 1], losses in nats, seconds)."""

    stage: str = ""
    step: int = 0
    of: int = 0
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The class's name in lower case, the word under which the event is stored."""
        return type(self).__name__.lower()


@dataclass(frozen=True, kw_only=True)
class Batch(Event):
    """One optimizer step was made. ``metrics['loss']`` is there only now and then, so that a GPU is not held up."""


@dataclass(frozen=True, kw_only=True)
class Epoch(Event):
    """An epoch ended. ``snapshot()`` gives everything needed to go on from here; whoever stores calls it."""

    snapshot: Callable[[], dict] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class Pruned(Event):
    """Masks were selected. metrics: the fields of `apnb.masks.Sparsity`, and ``clean`` and ``pgd`` accuracy right after the cut."""


@dataclass(frozen=True, kw_only=True)
class Waiting(Event):
    """Another worker computes the same stage; its result will be used."""


@dataclass(frozen=True, kw_only=True)
class Restored(Event):
    """A stage was taken from the store instead of computed."""


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """A stage goes on at ``step`` of ``of`` epochs from a stored snapshot."""


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """A stage was completed and stored. metrics: ``seconds``."""


@dataclass(frozen=True, kw_only=True)
class Attacked(Event):
    """Some points were attacked. metrics: ``attack``, ``robust`` (share still standing of the ``n`` points), ``n``."""


@dataclass(frozen=True, kw_only=True)
class Done(Event):
    """The last event of a run: ``run`` is the finished `apnb.Run`."""

    run: Any = field(default=None, repr=False, compare=False)

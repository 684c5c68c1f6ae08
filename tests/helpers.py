"""What several test files need."""

import torch

from apnb.events import Epoch
from apnb.mechanisms import state_of
from apnb.store import load_tree, save_tree


def same(a, b) -> bool:
    """Equal to the bit: tensors with their type, nested dicts and lists (a tuple counts as the list it is stored as), plain values."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b and type(a) is type(b)


def record(stream, each=lambda event: None):
    """Carry out a stage: its snapshots, one an epoch, and step and metrics of all events; ``each`` sees every event as it comes."""
    snapshots, events = [], []
    for event in stream:
        each(event)
        if isinstance(event, Epoch):
            snapshots.append(event.snapshot())
        events.append((event.step, dict(event.metrics)))
    return snapshots, events


def goes_on_as_if_never_stopped(stage, folder):
    """Assert that a stage resumed after any of its epochs, from a file, equals an uninterrupted one to the bit.

    ``stage`` takes a snapshot (None: from the start) and returns the network, the mechanism (or None) and what `record` returns;
    an epoch has three batches. Returns what the uninterrupted stage returned.
    """

    def left(net, mechanism):
        return {"net": net.state_dict(), "mechanism": state_of(mechanism) if mechanism else None}

    net, mechanism, snapshots, events = whole = stage(None)
    save_tree(folder / "whole", left(net, mechanism))
    assert len(snapshots) > 2 and len(events) == 4 * len(snapshots)
    for epoch, snapshot in enumerate(snapshots, 1):
        save_tree(folder / "snapshot", snapshot)
        torch.manual_seed(epoch)  # the global random state must not matter
        again, other, _, rest = stage(load_tree(folder / "snapshot"))
        assert same(left(again, other), left(net, mechanism))
        assert rest == events[4 * epoch :]
        save_tree(folder / "again", left(again, other))
        assert (folder / "again").read_bytes() == (folder / "whole").read_bytes()
    return whole


def own_row(**other) -> dict:
    """A run as the store's table has it, made and judged the way the published ones are."""
    given = {
        "key": "k1", "label": "mine", "pipeline": "after", "structure": "weights", "criterion": "lwm", "network": "resnet18",
        "data": "cifar10", "sparsity": 0.9, "clean": 0.8, "robust": 0.4, "low": 0.35, "high": 0.45, "n": 400, "attacks": "standard",
        "eps": 8 / 255,
    }  # fmt: skip
    return given | other

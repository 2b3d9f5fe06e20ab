"""Peers: other libraries' layers on the weights of an artifact, to compare its numbers and its speed with.

A provider is a function of an executable and the names of some of its blocks that returns the peers it can build, or
raises NoPeer. A library for GPUs joins by a provider in `providers`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moeloom.check import inputs_of, relative_l2
from moeloom.measure import medians
from moeloom.runtime.cpu import Cpu
from moeloom.runtime.executable import Executable

CHECKED_TOKENS = 16
TOLERANCE = {"bf16": 1e-2, "mxfp4": 0.3}
"""Relative L2 against a peer whose activations are bf16. MXFP4 activations are another computation: there only a gross
error is caught, the exact comparison is `moeloom check`."""


class NoPeer(Exception):
    """A library cannot stand beside this artifact. One line: which, and why."""


class PeerDisagrees(Exception):
    """A peer computes something else, so that its times mean nothing. One line: which, and how far apart they are."""


@dataclass(frozen=True, eq=False)
class Peer:
    """Another library's `layers`, by entry: activations [M, H] -> [M, H].

    `fits(M)`: whether memory holds a call. `comparable(entry, x)`: the rows of x that are certain to meet the same
    experts on both sides, bool [M]; ties between experts may be broken otherwise.
    """

    name: str
    layers: Mapping[str, Callable[[Tensor], Tensor]]
    fits: Callable[[int], bool]
    comparable: Callable[[str, Tensor], Tensor]


Provider = Callable[[Executable, Sequence[str]], list[Peer]]


def providers() -> tuple[Provider, ...]:
    """Every library we know, installed or not."""
    from moeloom import transformers_peer

    return (transformers_peer.provide,)


def find(executable: Executable, names: Sequence[str]) -> tuple[list[Peer], list[str]]:
    """The peers of these blocks that can be built here, and for the other libraries why not."""
    peers: list[Peer] = []
    reasons = []
    for provide in providers():
        try:
            peers += provide(executable, names)
        except NoPeer as reason:
            reasons.append(str(reason))
    return peers, reasons


def compare(peer: Peer, executable: Executable, seed: int = 0) -> float:
    """Relative L2 between the artifact and a peer on its first layer; PeerDisagrees beyond the tolerance."""
    name = next(iter(peer.layers))
    x = inputs_of(executable, name, CHECKED_TOKENS, seed)["x"]
    rows = peer.comparable(name, x)
    error = relative_l2(executable[name](x)[rows], peer.layers[name](x)[rows])
    limit = TOLERANCE[executable.manifest.raw["options"]["activations"]]
    if not error <= limit:
        raise PeerDisagrees(f"{peer.name}: relative L2 at {name} is {error:.3g}, beyond {limit}; see `moeloom check`")
    return error


def time(peer: Peer, executable: Executable, tokens: int, inputs: int, seed: int = 0) -> float:
    """Median seconds of a call at M = `tokens`; layers and `inputs` random inputs take turns."""
    names = list(peer.layers)
    given = [inputs_of(executable, names[turn % len(names)], tokens, seed + turn)["x"] for turn in range(inputs)]
    before = torch.get_num_threads()
    torch.set_num_threads(executable.device.threads if isinstance(executable.device, Cpu) else before)
    try:
        return medians([lambda turn: peer.layers[names[turn % len(names)]](given[turn % inputs])])[0]
    finally:
        torch.set_num_threads(before)

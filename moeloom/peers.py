"""Peers: other libraries' layers on the weights of an artifact, to compare its numbers and its speed with.

A provider is a function of an executable and the names of some of its blocks that returns the peers it can build, or
raises NoPeer. A library for GPUs joins by a provider in `providers`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from moeloom.check import inputs_of, relative_l2
from moeloom.measure import medians
from moeloom.routing import Router, router_of
from moeloom.runtime.errors import LaunchError
from moeloom.runtime.executable import Executable
from moeloom.timing import timed, torch_threads, turns

CHECKED_TOKENS = 16
TOLERANCE = {"bf16": 1e-2, "mxfp4": 0.3}
"""Relative L2 against a peer whose activations are bf16. MXFP4 activations are another computation: there only a gross
error is caught, the exact comparison is `moeloom check`."""
CLOSE = 2.0**-6
"""Experts at the edge of the best k whose logits differ by less than this share may swap where sums are rounded."""


class NoPeer(Exception):
    """A library cannot stand beside this artifact. One line: which, and why."""


class PeerDisagrees(Exception):
    """A peer computes something else, so that its times mean nothing. One line: which, and how far apart they are."""


@dataclass(frozen=True, eq=False)
class Peer:
    """Another library's `layers`, by entry: activations [M, H] -> [M, H].

    `fits(M)`: whether memory holds a call. `comparable(entry, x)`: the rows of x that are certain to meet the same
    experts on both sides, bool [M]; ties between experts may be broken otherwise. `prepare(x)`: x as the layers take
    it, made ahead of a call.
    """

    name: str
    layers: Mapping[str, Callable[[Tensor], Tensor]]
    fits: Callable[[int], bool]
    comparable: Callable[[str, Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor] = lambda x: x

    def call(self, name: str, x: Tensor) -> Callable[[], Tensor]:
        """A call of the layer `name` on x, which is prepared now."""
        return partial(self.layers[name], self.prepare(x))


Provider = Callable[[Executable, Sequence[str]], list[Peer]]


def providers(device: str) -> tuple[Provider, ...]:
    """Every library we know that runs on devices of this type, "cpu" or "cuda", installed or not."""
    if device == "cpu":
        from moeloom import transformers_peer

        return (transformers_peer.provide,)
    from moeloom import marlin_peer, triton_kernels_peer

    return (triton_kernels_peer.provide, marlin_peer.provide)


def find(executable: Executable, names: Sequence[str]) -> tuple[list[Peer], list[str]]:
    """The peers of these blocks that can be built here, and for the other libraries why not."""
    peers: list[Peer] = []
    reasons = []
    for provide in providers(executable.device.torch_device.type):
        try:
            peers += provide(executable, names)
        except NoPeer as reason:
            reasons.append(str(reason))
    return peers, reasons


def compare(peer: Peer, executable: Executable, seed: int = 0) -> float:
    """Relative L2 between the artifact and a peer on its first layer; PeerDisagrees beyond the tolerance."""
    name = next(iter(peer.layers))
    x = inputs_of(executable, name, CHECKED_TOKENS, seed)["x"]
    error = distance(peer, executable, name, x)
    limit = TOLERANCE[executable.manifest.raw["options"]["activations"]]
    if not error <= limit:
        raise PeerDisagrees(f"{peer.name}: relative L2 at {name} is {error:.3g}, beyond {limit}; see `moeloom check`")
    return error


def distance(peer: Peer, executable: Executable, name: str, x: Tensor) -> float:
    """Relative L2 between entry `name` and the peer's layer on x, over the rows that can be compared."""
    rows = peer.comparable(name, x)
    return relative_l2(executable[name](x)[rows], peer.call(name, x)()[rows])


def time(
    peer: Peer, executable: Executable, tokens: int, inputs: int, seed: int = 0, routing: str = "natural"
) -> float:
    """Median seconds of a call at M = `tokens`; layers and `inputs` random inputs take turns."""
    with torch_threads(executable.device):
        call, count = timed(calls(peer, executable, tokens, inputs, seed, routing), executable.device)
        return medians([call])[0] / count


def calls(
    peer: Peer, executable: Executable, tokens: int, inputs: int, seed: int = 0, routing: str = "natural"
) -> list[Callable[[], Tensor]]:
    """Calls of a peer's layers in turns, on the inputs that `timing.turns` has for them."""
    taken = turns(executable, list(peer.layers), tokens, inputs, seed, routing)
    return [peer.call(name, given["x"]) for name, given in taken]


def linear_softmax_router(executable: Executable, name: str, library: str) -> Router:
    """The router of a block that is a product of x and a softmax over its best k, and all besides the experts; NoPeer
    for any other."""
    try:
        router = router_of(executable, name)
    except LaunchError as reason:
        raise NoPeer(f"{library}: {reason}") from None
    if not router.is_softmax:
        raise NoPeer(f"{library}: its routing is a softmax, that of {name!r} is not")
    own = 1 if router.bias is None else 2
    if sum((weight.pack or {"kind": "as_is"})["kind"] == "as_is" for weight in executable[name].program.weights) > own:
        raise NoPeer(f"{library}: {name!r} has weights besides its router and its experts")
    return router


def without_close_experts(router: Router, x: Tensor) -> Tensor:
    """Rows of x whose k-th and next expert are not so close that rounding may swap them, bool [M]."""
    logits, topk = router.logits(x).float(), router.params["topk"]
    if topk >= logits.shape[1]:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    last, following = logits.topk(topk + 1).values[:, -2:].unbind(1)
    return last - following > CLOSE * torch.maximum(last.abs(), following.abs())

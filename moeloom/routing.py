"""Batches that a router sends where a benchmark wants them: logits of a known distribution, and the x that has them.

    natural   x is normal, the router's weights decide
    uniform   every set of k experts is as likely as any other
    zipf      the expert of rank r, in an order of the layer's own, is drawn with weight 1/r
    one_set   every token has the same k experts, which are the layer's own
    topics    like text: neighbours resemble each other (below)

All but the last two draw the k experts of a token without replacement, each with its weight (Plackett and Luce): the
k largest of log(weight) plus Gumbel noise. `topics`: a layer has TOPICS topics, a Dirichlet distribution of its experts
each (concentration CONCENTRATION, so that a topic favours a few), and a popularity of every expert that all topics
share (log-normal, POPULARITY_SPREAD). A run of RUN neighbouring tokens has one topic; a token draws its experts with
the weights topic x popularity.

What a layer has of its own follows from its entry's name: all its inputs share it. The seed varies the tokens.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moeloom.check import inputs_of
from moeloom.runtime.errors import LaunchError
from moeloom.runtime.executable import Executable
from moeloom.runtime.program import Aten, Launch

ZIPF_EXPONENT = 1.0
ONE_SET_LEAD = 12.0
"""By how much the logits of the one set lie above the others, which are standard normal and cut off at +-4."""
TOPICS, RUN = 16, 16
CONCENTRATION, POPULARITY_SPREAD = 0.25, 0.5
LEAST_WEIGHT = 1e-6
LINEAR = "aten.linear.default"
LOGITS = {"route": 0, "route_sort": 0, "decode_routed_gate_up": 1}
"""Templates that route, and which operand the logits are."""
Draw = Callable[[int, int, int, torch.Generator, torch.Generator], Tensor]


def _gumbel(tokens: int, experts: int, generator: torch.Generator) -> Tensor:
    uniform = torch.rand(tokens, experts, generator=generator, dtype=torch.float64)
    return -(-uniform.clamp_min(1e-12).log()).log()


def _uniform(tokens: int, experts: int, topk: int, layer: torch.Generator, token: torch.Generator) -> Tensor:
    return _gumbel(tokens, experts, token)


def _zipf(tokens: int, experts: int, topk: int, layer: torch.Generator, token: torch.Generator) -> Tensor:
    rank = torch.randperm(experts, generator=layer) + 1
    return _gumbel(tokens, experts, token) - ZIPF_EXPONENT * rank.log()


def _one_set(tokens: int, experts: int, topk: int, layer: torch.Generator, token: torch.Generator) -> Tensor:
    logits = torch.randn(tokens, experts, generator=token).clamp(-4, 4).double()
    logits[:, torch.randperm(experts, generator=layer)[:topk]] += ONE_SET_LEAD
    return logits


def _topics(tokens: int, experts: int, topk: int, layer: torch.Generator, token: torch.Generator) -> Tensor:
    gamma = torch._standard_gamma(torch.full((TOPICS, experts), CONCENTRATION, dtype=torch.float64), generator=layer)
    popularity = (POPULARITY_SPREAD * torch.randn(experts, generator=layer, dtype=torch.float64)).exp()
    weights = gamma / gamma.sum(1, keepdim=True) * popularity + LEAST_WEIGHT
    runs = torch.randint(TOPICS, (-(-tokens // RUN),), generator=token)
    return _gumbel(tokens, experts, token) + weights.log()[runs.repeat_interleave(RUN)[:tokens]]


DRAWS: dict[str, Draw] = {"uniform": _uniform, "zipf": _zipf, "one_set": _one_set, "topics": _topics}
DISTRIBUTIONS = ("natural", *DRAWS)


def logits(distribution: str, tokens: int, experts: int, topk: int, layer: str, seed: int) -> Tensor:
    """f64 [tokens, experts] of `distribution` for the layer of that name, the same on every machine."""
    of_layer = torch.Generator().manual_seed(zlib.crc32(layer.encode()))
    of_tokens = torch.Generator().manual_seed(zlib.crc32(f"{layer} {seed}".encode()))
    return DRAWS[distribution](tokens, experts, topk, of_layer, of_tokens)


@dataclass(frozen=True)
class Router:
    """The router of an entry: logits = x @ weight.T + bias, then `topk` by `params` of its `route` kernel."""

    weight: Tensor
    bias: Tensor | None
    params: dict

    def logits(self, x: Tensor) -> Tensor:
        """[M, E] in the model's dtype, as ATen computes them."""
        return torch.nn.functional.linear(x, self.weight, self.bias)

    @property
    def is_softmax(self) -> bool:
        """Whether the weights are a softmax over the chosen logits, whatever order it is computed in."""
        before = self.params["score"] == "softmax_before_topk" and self.params["renormalise"]
        return self.params["scale"] == 1 and (before or self.params["score"] == "softmax_after_topk")


def router_of(executable: Executable, name: str) -> Router:
    """The router of an entry; LaunchError where it has none, or one whose choice is not by a product of x alone."""
    program, prefix = executable[name].program, executable.manifest.entries[name].prefix
    steps = list(program.chosen(1))
    kernels = executable.target.kernels
    weights = {weight.value: executable.weights[prefix + weight.name] for weight in program.weights}
    xs = [wanted.value for wanted in program.inputs if wanted.name == "x"]
    for route in steps:
        if not (isinstance(route, Launch) and kernels[route.kernel]["template"] in LOGITS):
            continue
        template, params = kernels[route.kernel]["template"], kernels[route.kernel]["params"]
        # That of gate_up chooses by logits alone; its has_bias is the product's.
        if template != "decode_routed_gate_up" and (params["has_bias"] or params["groups"] != 1):
            continue
        for step in steps:
            if route.operands[LOGITS[template]] not in step.results:
                continue
            if isinstance(step, Aten) and step.op == LINEAR:
                x, *factors = (arg.get("value") for arg in step.args)
            elif isinstance(step, Launch) and kernels[step.kernel]["template"] == "router":
                x, *factors = step.operands
            else:
                continue
            weight, bias = (weights.get(value) for value in (*factors, None)[:2])
            if x in xs and weight is not None:
                return Router(weight, bias, params)
    raise LaunchError(f"entry {name!r} has no router that is a product of x and no more; it cannot be steered")


def steer(x: Tensor, router: Router, wanted: Tensor) -> Tensor:
    """The activations nearest to `x` [M, H] on which `router` gives the logits `wanted` [M, E], up to rounding.

    LaunchError where there are none: more experts than columns, or rows of the router's weight that depend.
    """
    weight = router.weight.double()
    if weight.shape[0] > weight.shape[1]:
        raise LaunchError(f"a router of {weight.shape[0]} experts and {weight.shape[1]} columns cannot be steered")
    factor, failed = torch.linalg.cholesky_ex(weight @ weight.T)
    if failed:
        raise LaunchError("the rows of the router's weight depend on one another; its routing cannot be steered")
    bias = 0 if router.bias is None else router.bias.double()
    missing = wanted.to(weight.device) - bias - x.double() @ weight.T
    return (x.double() + torch.cholesky_solve(missing.T, factor).T @ weight).to(x.dtype)


def routed_inputs(executable: Executable, name: str, tokens: int, distribution: str, seed: int) -> dict[str, Tensor]:
    """Random inputs of an entry for M = `tokens`, on its device, whose tokens go where `distribution` says."""
    inputs = inputs_of(executable, name, tokens, seed)
    if distribution == "natural":
        return inputs
    router = router_of(executable, name)
    experts, topk = router.weight.shape[0], router.params["topk"]
    wanted = logits(distribution, tokens, experts, topk, name, seed)
    return inputs | {"x": steer(inputs["x"], router, wanted)}

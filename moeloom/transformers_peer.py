"""transformers' own MoE blocks as peers on the CPU: in bf16, on the dequantised weights of an artifact."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moeloom import families
from moeloom.peers import NoPeer, Peer
from moeloom.runtime.executable import Executable
from moeloom.runtime.pack import unpack, unpack_expert
from moeloom.runtime.reference import dequantise

IMPLEMENTATIONS = ("eager", "grouped_mm", "batched_mm")
LAYERS = 2
"""How many layers are built at most: enough that their weights, in turns, come from memory."""
MEMORY_SHARE = 0.4
"""Of the free memory, what the weights of a layer, or what a call gathers, may take."""


def provide(executable: Executable, names: Sequence[str]) -> list[Peer]:
    """A peer for each way in which transformers runs experts; NoPeer, with the reason, where it cannot."""
    config = executable.manifest.raw.get("model")
    if config is None:
        raise NoPeer("transformers: the artifact was compiled from no config.json, so its model is unknown")
    modules = dict(empty_model(config).named_modules())
    blocks = {name: filled(executable, name, modules.get(name)) for name in names[:LAYERS]}
    return [
        Peer(
            f"transformers {implementation}",
            {name: partial(run, block, implementation) for name, block in blocks.items()},
            partial(fits, next(iter(blocks.values())), implementation),
            lambda name, x: without_ties(blocks[name], x),
        )
        for implementation in IMPLEMENTATIONS
    ]


def empty_model(config: Mapping[str, Any]) -> nn.Module:
    """The bf16 model of a config.json, on the meta device."""
    try:
        import transformers
    except ModuleNotFoundError:
        raise NoPeer("transformers is not installed") from None
    plain = {name: value for name, value in config.items() if name != "quantization_config"}
    with torch.device("meta"):
        parsed = transformers.AutoConfig.for_model(**plain)
        return transformers.AutoModelForCausalLM.from_config(parsed, dtype=torch.bfloat16).eval()


def filled(executable: Executable, name: str, block: nn.Module | None) -> nn.Module:
    """`block` with the weights of the artifact's entry `name`."""
    if block is None or not families.is_block(block):
        raise NoPeer(f"transformers: entry {name!r} is no whole block")
    needed = sum(tensor.nbytes for tensor in block.state_dict().values())
    if needed > MEMORY_SHARE * free_memory():
        raise NoPeer(f"transformers: a layer in bf16 takes {needed / 2**30:.1f} GiB, too much of the free memory")
    wanted = block.state_dict()
    found = state(executable, name, transposed=getattr(block.experts, "is_transposed", False))
    block.load_state_dict({key: found[key].to(wanted[key].dtype) for key in wanted}, assign=True)
    return block


def state(executable: Executable, name: str, transposed: bool) -> dict[str, Tensor]:
    """The weights of an entry under the names of its block, MXFP4 ones in bf16: [E, N, K], or [E, K, N] transposed."""
    prefix = executable.manifest.entries[name].prefix
    weights = {w.name: w for w in executable[name].program.weights}
    packed = {own: executable.weights[prefix + own] for own in weights}
    kinds = {own: (w.pack or {"kind": "as_is", "sources": [own]}) for own, w in weights.items()}
    scales = {_stem(recipe): own for own, recipe in kinds.items() if recipe["kind"] == "scales"}
    found: dict[str, Tensor] = {}
    for own, recipe in kinds.items():
        if recipe["kind"] in ("as_is", "bias"):
            found[recipe["sources"][0]] = unpack(recipe, packed[own])
        if recipe["kind"] == "payload":
            other = scales[_stem(recipe)]
            experts = [
                dequantise(unpack_expert(recipe, codes), unpack_expert(kinds[other], exponents)).bfloat16()
                for codes, exponents in zip(packed[own], packed[other], strict=True)
            ]
            found[_stem(recipe)] = torch.stack([one.T for one in experts] if transposed else experts)
    return found


def _stem(recipe: Mapping[str, Any]) -> str:
    """The name that a payload and its scales share."""
    return recipe["sources"][0].removesuffix("_blocks").removesuffix("_scales")


def use(block: Any, implementation: str) -> None:
    """Have transformers run the experts of `block` by `implementation`."""
    block.experts.config._experts_implementation = implementation


@torch.no_grad()
def run(block: Any, implementation: str, x: Tensor) -> Tensor:
    """`block` on activations [M, H] -> [M, H], its experts run by `implementation`."""
    use(block, implementation)
    out = block(x if families.family_of(block).rank == 2 else x.unsqueeze(0))
    out = out[0] if isinstance(out, tuple) else out
    return out.squeeze(0) if out.dim() == 3 else out


def fits(block: Any, implementation: str, tokens: int) -> bool:
    """Whether memory holds a call at M = `tokens`: batched_mm copies the weights of every expert for every row."""
    if implementation != "batched_mm":
        return True
    expert = block.experts.gate_up_proj[0].nbytes + block.experts.down_proj[0].nbytes
    return tokens * _router(block).top_k * expert <= MEMORY_SHARE * free_memory()


def free_memory() -> int:
    """Bytes."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@torch.no_grad()
def without_ties(block: nn.Module, x: Tensor) -> Tensor:
    """Rows whose best logits differ: at a tie torch.topk and the contract may choose other experts."""
    router = _router(block)
    logits = router(x)[0].float()
    best = logits.topk(min(router.top_k + 1, logits.shape[-1])).values
    return (best[:, 1:] < best[:, :-1]).all(-1)


def _router(block: nn.Module) -> Any:
    return getattr(block, families.family_of(block).router)

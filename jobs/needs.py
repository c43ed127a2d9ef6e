"""What a run needs of a cluster, and what the cluster lacks of it."""

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from jobs.cluster import Node
from jobs.config import RunConfig
from vae_core.errors import Misuse

ASK_AGAIN_S = 2.0


class HasNodes(Protocol):
    """A cluster that tells its nodes."""

    address: str

    def nodes(self) -> list[Node]:
        """The nodes that are alive."""


@dataclass(frozen=True, slots=True)
class Need:
    """So much of a resource, and the setting that asks for it."""

    resource: str
    amount: int
    setting: str


def needs(config: RunConfig, stages: Collection[str]) -> list[Need]:
    """What these stages of the run need at once: training its workers; the others take what there is."""
    if "pretrain" not in stages:
        return []
    workers = config.pretrain.workers
    found = [Need("CPU", workers, f"pretrain.workers is {workers}")]
    if config.pretrain.gpus:
        found.append(Need("GPU", workers, f"pretrain.workers is {workers}, with a GPU each"))
    return found


def lacking(needs: Iterable[Need], nodes: Iterable[Node]) -> list[str]:
    """What the nodes do not have, in words."""
    nodes = list(nodes)
    has = {need.resource: int(sum(node.resources.get(need.resource, 0) for node in nodes)) for need in needs}
    return [
        f"{need.amount - has[need.resource]} more {need.resource} ({need.setting}; its "
        f"{_nodes(len(nodes))} {has[need.resource]})"
        for need in needs
        if need.amount > has[need.resource]
    ]


def require(needs: list[Need], cluster: HasNodes, patience: float, say: Callable[[str], None]) -> None:
    """Wait until the cluster has what is needed, `patience` seconds at most; `say` hears once what is missing.

    Raises Misuse that names what is missing.
    """
    until = time.monotonic() + patience
    said: list[str] = []
    while missing := lacking(needs, cluster.nodes()):
        if time.monotonic() >= until:
            raise Misuse(
                f"the cluster at {cluster.address} lacks {' and '.join(missing)}; add nodes, lower the setting, or "
                f"wait for nodes that are on their way with --patience 600"
            )
        if missing != said:
            say(f"waiting for {' and '.join(missing)}")
            said = missing
        time.sleep(min(ASK_AGAIN_S, max(0.0, until - time.monotonic())))


def _nodes(count: int) -> str:
    return "1 node has" if count == 1 else f"{count} nodes have"

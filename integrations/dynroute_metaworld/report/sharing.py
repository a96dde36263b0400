"""What the seeds of a method agree on about its routes: how alike those of tasks are, and how sparse."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynroute import Topology

from ..runs.intervals import iqm, whole_run_interval
from .comparison import Group
from .watching import THRESHOLD, Routes

__all__ = ["Sharing"]

RESAMPLES = 500


@dataclass(frozen=True, eq=False)
class Sharing:
    """The routes of the runs of a group.

    Modules have no order that seeds have in common, so that mean routes over seeds would mean nothing. What is taken
    together is what does not depend on it.

    Attributes:
        group: The runs that differ in their seeds alone.
        routes: What the policies of those do that have learned routes and can act, by the name of the run.
    """

    group: Group
    routes: Mapping[str, Routes]

    @classmethod
    def of(cls, group: Group, routes: Mapping[str, Routes]) -> "Sharing | None":
        """That of a group; None if no run of it has routes.

        Args:
            group: The runs.
            routes: What policies do, by the name of the run.
        """
        known = {one.name: routes[one.name] for one in group.runs if one.name in routes}
        known = {name: one for name, one in known.items() if one.route is not None}
        return cls(group, known) if known else None

    @property
    def topology(self) -> Topology:
        """The graph, the same for all runs."""
        topology = next(iter(self.routes.values())).topology
        assert topology is not None
        return topology

    @property
    def similarity(self) -> NDArray[np.float64]:
        """How alike the routes of each two tasks are, with shape ``[runs, tasks, tasks]``."""
        return np.stack([one.similarity().double().numpy() for one in self.routes.values()])

    @property
    def sources(self) -> NDArray[np.float64]:
        """How many sources weigh more than 0.01 in the mean, with shape ``[runs, nodes that read others]``."""
        return np.stack([one.sources().double().mean(dim=0).numpy() for one in self.routes.values()])

    @property
    def unread(self) -> NDArray[np.float64]:
        """The share of edges that weigh at most 0.01, with shape ``[runs, 1]``."""
        shares = []
        for one in self.routes.values():
            assert one.route is not None
            weights = self.topology.to_edges(one.route.weights)
            shares.append([float((weights <= THRESHOLD).double().mean())])
        return np.array(shares)

    def similarity_rows(self) -> list[dict[str, Any]]:
        """The similarity of each two tasks, of each task with all others, and of all; these have no `other`."""
        similarity, tasks = self.similarity, self.group.tasks
        if len(tasks) < 2:
            return []
        pairs = np.triu_indices(len(tasks), k=1)
        tables = [("", "", similarity[(slice(None), *pairs)])]
        for i, task in enumerate(tasks):
            tables.append((task, "", np.delete(similarity[:, i], i, axis=1)))
        for i, j in itertools.combinations(range(len(tasks)), 2):
            tables.append((tasks[i], tasks[j], similarity[:, i, j, None]))
        return [{"task": task, "other": other, **_over_seeds(table)} for task, other, table in tables]

    def sparsity_rows(self) -> list[dict[str, Any]]:
        """How many sources each node may read, and how many it does."""
        columns, topology = self.sources.T, self.topology
        return [
            {"node": node, "may_read": len(topology.parents[node]), **_over_seeds(column[:, None])}
            for node, column in zip(topology.destinations, columns, strict=True)
        ]

    def row(self) -> dict[str, Any]:
        """The similarity over all pairs of tasks, and the share of edges that are not read, as plain data."""
        pairs = np.triu_indices(len(self.group.tasks), k=1)
        tables = {"similarity": self.similarity[(slice(None), *pairs)], "edges_unread": self.unread}
        told: dict[str, Any] = {"seeds_with_routes": len(self.routes)}
        for name, table in tables.items():
            figures = _over_seeds(table) if table.size else {"iqm": None, "low": None}
            told[name] = figures["iqm"]
            told[f"{name}_interval"] = None if figures["low"] is None else [figures["low"], figures["high"]]
        return told


def _over_seeds(table: NDArray[np.float64]) -> dict[str, float | None]:
    """The IQM of figures with shape ``[runs, columns]``, and its interval; one run has none."""
    low, high = whole_run_interval(table, resamples=RESAMPLES) if len(table) > 1 else (None, None)
    return {"iqm": iqm(table), "low": low, "high": high}

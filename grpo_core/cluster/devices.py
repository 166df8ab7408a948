"""The helper behind runs/ray_cluster.py: connects to a Ray cluster and lists its nodes.

`python -m grpo_core.cluster.devices --ray ADDRESS` prints the same once, as JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from grpo_core.child_process import NoValue, end_with_parent, serve

MAX_MEMORY = 1 << 50  # Ray maps its shared memory, which may be as large as the machine's
ACCELERATOR = "accelerator_type:"


def look(address: str) -> list[dict[str, Any]]:
    """The nodes of the cluster that are alive: name, GPUs, cores, and the kind of the GPUs.

    Connects on the first call, for good. Raises NoValue with the reason if there is no cluster.
    """
    try:
        import ray
    except ImportError:
        hint = "install requirements-cluster.txt"
        raise NoValue(f"the package ray is missing: {hint}") from None
    if not ray.is_initialized():
        try:
            ray.init(address, namespace="grpo-studio", log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            [why, *_] = str(error).strip().splitlines() or [type(error).__name__]
            raise NoValue(why.rstrip(".")) from None
    return [node_of(node) for node in ray.nodes() if node["Alive"]]


def node_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ray.nodes() in our words."""
    resources = node["Resources"]
    kinds = [name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR)]
    return {
        "name": node["NodeManagerHostname"] or node["NodeManagerAddress"],
        "gpus": int(resources.get("GPU", 0)),
        "cores": int(resources.get("CPU", 0)),
        "kind": kinds[0] if kinds else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the nodes of a Ray cluster as JSON.")
    parser.add_argument("--ray", metavar="ADDRESS")
    address = parser.parse_args().ray
    if address is None:
        end_with_parent()
        serve({"look": look}, MAX_MEMORY)
    else:
        print(json.dumps(look(address)))


if __name__ == "__main__":
    main()

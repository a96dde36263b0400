"""Read, store, replay and draw a route.

A network is trained briefly. The program prints the modules and the depth of one sample's route, stores its path in a
few bytes, replays it for the identical output, and draws it as an SVG picture that any browser opens.
"""

from pathlib import Path

import torch

from dynroute import ModuleRouting, inspect


def main(steps: int = 100, folder: str = "demo") -> Path:
    """Prints the parts of a route and returns the path of its picture."""
    torch.manual_seed(0)
    net = ModuleRouting.mlp(4, 16, 7, 1, router_sizes=[32])  # 7 modules and the output; the input is the context
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        x = torch.randn(128, 4)
        optimizer.zero_grad()
        (net(x) - x.prod(dim=-1, keepdim=True)).square().mean().backward()
        optimizer.step()

    x = torch.randn(5, 4)
    topology = net.topology
    output, route = net(x, return_route=True)  # in training mode the path is sampled
    print("route of 5 samples: ", {name: tuple(tensor.shape) for name, tensor in route._asdict().items()})
    print("nodes that run:     ", topology.used(route.path).sum(dim=-1).tolist(), "of", topology.num_nodes)
    print("depth:              ", topology.depth(route.path).tolist())

    sample = route.sample(0)
    used = topology.used(sample.path)
    print("\nnodes of sample 0:  ", used.nonzero().flatten().tolist())
    for source, node, weight in topology.edges(sample.path, sample.weights):
        print(f"  {source} -> {node}  {weight:.3f}" + ("" if used[node] else f"  (of no use: nothing reads {node})"))

    record = topology.pack(route.path)
    print(f"\na recorded path:     {record.shape[-1]} bytes for {topology.num_edges} possible edges")
    replayed = net(x, path=topology.unpack(record))
    print("replay is identical:", torch.equal(replayed, output))
    print("a new draw is too:  ", torch.equal(net(x), output))

    picture = Path(folder) / "route.svg"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_text(inspect.draw(topology, sample, title="The route of sample 0"))
    print("\nThe picture is", picture)
    return picture


if __name__ == "__main__":
    main()

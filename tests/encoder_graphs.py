"""How many graphs torch.compile makes of an encoder's training step: `python tests/encoder_graphs.py NAME …`, as JSON.

A process of its own, because the suite's type checks are Python that no compiler should follow.
"""

import json
import sys
from typing import Any

import torch
from test_encoders_contract import VARIANTS, everything, image

import vol3d
from vol3d.model.interfaces import Encoder


def graphs(name: str) -> int:
    """Graphs of forward and backward, checkpointing included; raises when there is a break or the loss differs."""
    torch._dynamo.reset()
    encoder = vol3d.encoders.create(name, **VARIANTS[name][0]).train()
    twin = type(encoder)(**encoder.init_args).train()
    twin.load_state_dict(encoder.state_dict())
    images, affine = image(name), torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    count: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        count.append(1)
        return graph.forward

    def step(module: Encoder) -> torch.Tensor:
        return sum(given.float().square().mean() for given in everything(module, module(images, affine)))

    for module in (encoder, twin):
        module.checkpointing = True
    compiled = torch.compile(step, fullgraph=True, backend=backend)(twin)
    compiled.backward()
    torch.testing.assert_close(compiled, step(encoder), rtol=1e-4, atol=1e-5)
    if any(p.grad is None for p in twin.parameters()):
        raise RuntimeError("a parameter got no gradient")
    return len(count)


def main(names: list[str]) -> None:
    found: dict[str, int | str] = {}
    for name in names:
        try:
            found[name] = graphs(name)
        except Exception as error:  # told by the test of this encoder
            found[name] = f"{type(error).__name__}: {str(error)[:500]}"
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
